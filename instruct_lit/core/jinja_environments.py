"""The Jinja environments of the program: one for prompts, templates and Markdown, one for HTML pages."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment


@cache
def text_environment() -> ImmutableSandboxedEnvironment:
    """The sandboxed environment for plain text, whoever wrote the template; an unknown variable is an error.

    Nothing is escaped, and a trailing newline is kept.
    """
    return ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True
    )


def html_environment(*folders: Path) -> jinja2.Environment:
    """The environment for pages made of the templates in `folders`, the first folder first; every value is escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
