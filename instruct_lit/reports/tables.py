"""Tables and lines in the terminal, in one style."""

import contextlib
import csv
import json
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

results: TextIO | None = None  # where results are written; None: to the standard output


class LineConsole(Console):
    """A console of rich that breaks no lines in a file or a pipe, and ends none of a table there with spaces.

    In a terminal too narrow for a table's figures its lines are longer, rather than without names or digits.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        super().__init__(file=file, highlight=False)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = 1_000_000

    def print(self, *content: Any, **style: Any) -> None:
        before, wide = self.width, self.options.update(width=10_000, markup=False)
        for made in (part for part in content if isinstance(part, Table)):
            for column in (column for column in made.columns if column.no_wrap and column.width is None):
                cells = (column.header, *column.cells)
                column.min_width = max(self.measure(cell, options=wide).maximum for cell in cells)
            self.width = max(self.width, self.measure(made, options=wide).minimum)
        if self.is_terminal or all(isinstance(part, str | Text) for part in content):
            super().print(*content, **style)
        else:
            with self.capture() as captured:
                super().print(*content, **style)
            self.file.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))
        self.width = before


def table(*columns: str, header: bool = True, text: Collection[str] = ()) -> Table:
    """A table of rich without a frame: the first column and those in `text` to the left, numbers to the right."""
    made = Table(box=None, pad_edge=False, show_header=header)
    for column in columns:
        left = not header or column in (columns[0], *text)
        no_wrap = not left if header else column == columns[0]
        made.add_column(column, justify="left" if left else "right", no_wrap=no_wrap, overflow="fold")
    return made


def show_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], **style: Any) -> None:
    """Print rows of values under their columns, nothing without rows; `style` are the other arguments of `table`."""
    made = table(*columns, **style)
    for row in rows:
        made.add_row(*map(str, row))
    if made.rows:
        show(made)


@contextlib.contextmanager
def table_alone(form: str) -> Iterator[None]:
    """Unless `form` is `table`, send results to standard error: standard output is for `print_records` alone."""
    global results
    before = results
    results = before if form == "table" else sys.stderr
    try:
        with contextlib.nullcontext() if form == "table" else contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        results = before


def print_records(records: Sequence[Mapping[str, Any]], form: str) -> None:
    """Print records with the same keys as `csv`, `markdown`, `latex` (booktabs) or `json`; nothing for `table`."""
    out, columns = results or sys.stdout, list(records[0])
    rows = [["" if v is None else v for v in record.values()] for record in records]
    short = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in (columns, *rows)]
    if form == "csv":
        csv.writer(out, lineterminator="\n").writerows([columns, *rows])
    elif form == "json":
        print(json.dumps(records, indent=1, ensure_ascii=False), file=out)
    elif form == "markdown":
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in short]
        print("\n".join([lines[0], "|" + "---|" * len(columns), *lines[1:]]), file=out)
    elif form == "latex":
        special: dict[str, Any] = {c: f"\\{c}" for c in "&%$#_{}"} | {
            "\\": r"\textbackslash{}",
            "~": r"\textasciitilde{}",
            "^": r"\^{}",
        }
        lines = [" & ".join(cell.translate(str.maketrans(special)) for cell in row) + r" \\" for row in short]
        rules = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
        print("\n".join([rf"\begin{{tabular}}{{{'l' * len(columns)}}}", *rules, r"\end{tabular}"]), file=out)


def show(content: Any) -> None:
    """Print a table or a line; square brackets are no markup, and a long line is not cut."""
    LineConsole(results).print(content, soft_wrap=isinstance(content, str), markup=False)
