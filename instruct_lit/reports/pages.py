"""Pages: one file without external resources, made of a template that extends `layout.html.jinja`."""

import os
from pathlib import Path
from typing import Any

import jinja2

from instruct_lit.reports.metrics import interval, meaning, number, p_value, quantity

FOLDER = Path(__file__).parent


def render(template: str, folder: Path = FOLDER, **values: Any) -> str:
    """Render a template of `folder`; every value is escaped.

    Filters: `number` (a metric or count as text), `quantity` (with the unit of a metric's name), `interval` (`low to
    high` of a mapping), `meaning` (of a metric), `p_value`.
    """
    loader = jinja2.FileSystemLoader([folder, FOLDER])
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {made.__name__: made for made in (number, quantity, interval, meaning, p_value)}
    return environment.get_template(template).render(**values)


def write_page(path: Path, template: str, folder: Path = FOLDER, **values: Any) -> None:
    """Render a template as `render` does, and write it whole or not at all."""
    write_whole(path, render(template, folder, **values))


def write_whole(path: Path, text: str) -> None:
    """Write a file whole, or leave what was there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
