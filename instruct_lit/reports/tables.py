"""Tables and lines in the terminal, in one style."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, TextIO

results: TextIO | None = None  # where results are written; None: to the standard output


def table(*columns: str, header: bool = True, text: Collection[str] = ()) -> Any:
    """A table of rich without a frame: the first column and those in `text` to the left, numbers to the right."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, show_header=header)
    for column in columns:
        left = not header or column in (columns[0], *text)
        made.add_column(column, justify="left" if left else "right", no_wrap=left is not header, overflow="fold")
    return made


def show_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], **style: Any) -> None:
    """Print rows of values under their columns; `style` are the other arguments of `table`."""
    made = table(*columns, **style)
    for row in rows:
        made.add_row(*map(str, row))
    show(made)


def show(content: Any) -> None:
    """Print a table or a line; square brackets are no markup, and a long line is not cut."""
    from rich.console import Console

    Console(file=results).print(content, highlight=False, soft_wrap=isinstance(content, str), markup=False)
