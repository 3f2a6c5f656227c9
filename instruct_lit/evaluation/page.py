"""The scores of an evaluation for a person: a table in the terminal, and a page with the worst answers first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instruct_lit.evaluation.categories import lines
from instruct_lit.evaluation.metrics import HIGHER_IS_BETTER

MAX_ROWS = 300


def print_scores(evaluation: Mapping[str, Any]) -> None:
    """Print means with their intervals, and the first metric by category."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("mean", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("n", justify="right")
    for name, value in lines(evaluation):
        table.add_row(name, f"{value['mean']:.3f}", f"{value['low']:.3f} to {value['high']:.3f}", str(value["n"]))
    Console().print(table)


def write_page(path: Path, evaluation: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one self-contained page: scores, then the answers with the worst first by the first metric."""
    import jinja2

    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html.jinja")
    first = next(iter(evaluation["metrics"]))
    sign = 1 if HIGHER_IS_BETTER.get(first, True) else -1
    worst = sorted(rows, key=lambda row: (sign * row["scores"][first], -row.get("loss", 0.0)))[:MAX_ROWS]
    what = evaluation["run"] or evaluation["responses"]
    page = template.render(
        what=what, evaluation=evaluation, lines=lines(evaluation), rows=worst, n_rows=len(rows), first=first
    )
    path.write_text(page, encoding="utf-8")
