"""Pages: one file without external resources, made of a template that extends `layout.html.jinja`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from instruct_lit.core.jinja_environments import html_environment

FOLDER = Path(__file__).parent


def write_page(path: Path, template: str, folder: Path = FOLDER, **values: Any) -> None:
    """Render a template of `folder` and write it whole or not at all; every value is escaped.

    Filters: `number` (a metric or count as text), `interval` (`low to high` of a mapping).
    """
    environment = html_environment(folder, FOLDER)
    environment.filters |= {"number": number, "interval": interval}
    page = environment.get_template(template).render(**values)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)


def number(value: Any) -> str:
    """A metric or a count as text; what is no number is shown unchanged, None as nothing."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value and not 1e-3 <= abs(value) < 1e7:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.4f}"


def interval(value: Any, form: str = "%.3f") -> str:
    """The bounds of an interval, `low to high`; of too few values there are none."""
    if value["low"] is None:
        return "too few to say"
    return f"{form % value['low']} to {form % value['high']}"
