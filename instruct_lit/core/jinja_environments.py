"""The Jinja environment of prompts, templates and Markdown; that of HTML pages is in `reports.pages`."""

from collections.abc import Callable
from functools import cache

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment

# `text_environment` with limits on time and memory for templates that could exceed them, None for the others.
# `instruct_lit.hf.install` registers one.
LIMITED: list[Callable[[str], SandboxedEnvironment | None]] = []
TEXT_OPTIONS = {
    "undefined": jinja2.StrictUndefined, "keep_trailing_newline": True, "trim_blocks": True, "lstrip_blocks": True,
}  # fmt: skip


@cache
def text_environment() -> SandboxedEnvironment:
    """The sandboxed environment for plain text; an unknown variable is an error.

    Nothing is escaped, and a trailing newline is kept.
    """
    return ImmutableSandboxedEnvironment(**TEXT_OPTIONS)


def compile_text(source: str) -> jinja2.Template:
    """Compile a template for plain text, whoever wrote it. Raises: jinja2.TemplateSyntaxError."""
    try:
        found = (choose(source) for choose in LIMITED)
        return (next(found, None) or text_environment()).from_string(source)
    except (RecursionError, MemoryError, SyntaxError, ValueError) as error:
        raise jinja2.TemplateSyntaxError(f"nested too deeply ({type(error).__name__})", 1) from error


def failure(error: Exception) -> str:
    """Why rendering failed: the expressions of a template can raise anything."""
    if isinstance(error, jinja2.TemplateError):
        return str(error)
    return "it calls itself too often" if isinstance(error, RecursionError) else f"{type(error).__name__}: {error}"
