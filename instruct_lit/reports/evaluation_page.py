"""The scores of an evaluation for a person: tables in the terminal, and a page with the worst answers first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instruct_lit.core.jinja_environments import html_environment
from instruct_lit.errors import printable
from instruct_lit.evaluation.categories import lines
from instruct_lit.evaluation.metrics import HIGHER_IS_BETTER, Row

MAX_ROWS = 300
MAX_LEAKS = 5  # listed in the terminal; the file has all


def print_scores(evaluation: Mapping[str, Any]) -> None:
    """Print means with their intervals, and the first metric and the loss by category."""
    leaks = evaluation.get("leaks")
    without = leaks["metrics_without"] if leaks and leaks["n"] else {}
    table = _table("", "mean", "95 % interval", "n", *(["without leaks"] if without else []))
    for name, value in lines(evaluation):
        span = f"{value['low']:.3f} to {value['high']:.3f}"
        clean = [f"{without[name]['mean']:.3f}"] if name in without else []
        table.add_row(name, f"{value['mean']:.3f}", span, str(value["n"]), *clean)
    _print(table)


def print_leaks(leaks: Mapping[str, Any] | None) -> None:
    """Print how many answered examples were in the training data, and the first of them."""
    if leaks is None:
        return
    kinds = ", ".join(f"{kind} {n}" for kind, n in leak_counts(leaks).items()) or "none"
    looked = "exact, near-duplicates and 13-word overlap" if leaks["near"] else "exact and 13-word overlap"
    _print(f"leaks ({looked}): {leaks['n']} of {leaks['n_rows']} examples were in the training data ({kinds})")
    for item in leaks["items"][:MAX_LEAKS]:
        _print(f"  {item['kind']} ({item['similarity']:.2f}): {printable(item['text'])}")
    if leaks["n"] > MAX_LEAKS:
        _print(f"  and {leaks['n'] - MAX_LEAKS} more, in evaluation.json")


def leak_counts(leaks: Mapping[str, Any]) -> dict[str, int]:
    """How many leaks there are of each kind."""
    kinds = [item["kind"] for item in leaks["items"]]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def print_judge(judge: Mapping[str, Any]) -> None:
    """Print the judge's mean score, what it is made of, and its agreement with other scores."""
    score = judge["score"]
    _print(
        f"judge {judge['model'] or judge['name']}: {score['mean']:.2f} ({score['low']:.2f} to {score['high']:.2f}), n "
        f"{score['n']}, of them {judge['n_unparsed']} without a readable verdict, which count as the lowest score"
    )
    if "agreement" in judge:
        table = _table("agreement", "")
        for name, value in judge["agreement"].items():
            table.add_row(
                name, "undefined" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
            )
        _print(table)


def print_comparison(comparison: Mapping[str, Any]) -> None:
    """Print the difference of two models in each metric, and what a judge says of them."""
    a, b = comparison["compare"]
    _print(
        f"A {a}\nB {b}\n{comparison['n_pairs']} common examples, {comparison['n_unpaired']} answers without a partner"
    )
    table = _table("", "A", "B", "A - B", "95 % interval", "p")
    for name, v in comparison["differences"].items():
        span = f"{v['low']:+.3f} to {v['high']:+.3f}"
        table.add_row(name, f"{v['a']:.3f}", f"{v['b']:.3f}", f"{v['mean']:+.3f}", span, f"{v['p']:.4f}")
    _print(table)
    if "pairwise" in comparison:
        for line in pairwise_lines(comparison["pairwise"]):
            _print(line)


def pairwise_lines(pairwise: Mapping[str, Any]) -> list[str]:
    """A judge's comparison in sentences."""
    rate, n = pairwise["win_rate"], pairwise["win_rate"]["n"]
    real = "more than chance" if pairwise["p"] < 0.05 else "no more than chance could give"
    ties = n - pairwise["wins"] - pairwise["losses"] - pairwise["turned"]
    shown = pairwise["first_shown"]
    return [
        f"A wins {rate['mean']:.1%} ({rate['low']:.1%} to {rate['high']:.1%}) of {n}; the difference from one half is "
        f"{real} (p = {pairwise['p']:.4f})",
        f"at equal length {pairwise['length_controlled_win_rate']:.1%}",
        f"in both orders A {pairwise['wins']}, B {pairwise['losses']}; {pairwise['turned']} turn with it, {ties} "
        "are ties in one order at least",
        f"{pairwise['n_unparsed']} of {pairwise['n_verdicts']} verdicts cannot be read and count as ties"
        + (f"; the answer shown first wins {shown:.0%} of the decided ones" if shown is not None else ""),
    ]


def write_page(path: Path, evaluation: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write one self-contained page: scores, leaks, judge, then the answers with the worst first.

    The order is the judge's where there is one, otherwise that of the first metric, the loss deciding between equals.
    """
    first = next(iter(evaluation["metrics"]))
    sign = 1 if HIGHER_IS_BETTER.get(first, True) else -1

    def quality(row: Row) -> tuple[float, float, float]:
        value = row.get("judge", {}).get("value")
        return (float("-inf") if value is None else value, sign * row["scores"][first], -row.get("loss", 0.0))

    leaks = evaluation.get("leaks")
    _write(
        path,
        "evaluation.html.jinja",
        what=evaluation["run"] or evaluation["responses"],
        evaluation=evaluation,
        lines=lines(evaluation),
        leaks=leaks,
        leak_counts=leak_counts(leaks) if leaks else {},
        judge=evaluation.get("judge"),
        rows=sorted(rows, key=quality)[:MAX_ROWS],
        n_rows=len(rows),
        first=first,
    )


def write_comparison(path: Path, comparison: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write the page of a comparison: differences, the judge's words, then the answers A loses by first."""
    pairwise = comparison.get("pairwise")
    _write(
        path,
        "comparison.html.jinja",
        comparison=comparison,
        sentences=pairwise_lines(pairwise) if pairwise else [],
        rows=sorted(rows, key=lambda row: row.get("judge", {}).get("share", 0.0))[:MAX_ROWS],
        n_rows=len(rows),
    )


def _write(path: Path, template: str, **values: Any) -> None:
    environment = html_environment(Path(__file__).parent)
    path.write_text(environment.get_template(template).render(**values), encoding="utf-8")


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _print(what: Any) -> None:
    from rich.console import Console

    Console().print(what, highlight=False, soft_wrap=isinstance(what, str), markup=False)
