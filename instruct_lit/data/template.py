"""The prompt template: the only place where prompt text exists.

A template is a Jinja text with the variables `instruction` and `input` and exactly one `{{ response }}`. What stands
before the response place is the prompt (the response header included), what stands behind it the suffix. The two
halves are rendered apart, so no text of a user can move the boundary between them.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from instruct_lit.data.example import Example
from instruct_lit.errors import TemplateError

_RESPONSE = re.compile(r"\{\{-?\s*response\s*-?\}\}")
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True
)


class Template:
    """Renders an example to its prompt and its full text.

    Raises TemplateError when the text has no place for the response or more than one, is no valid Jinja, or uses a
    variable that does not exist.
    """

    def __init__(self, name: str, text: str | None = None, path: str | Path | None = None) -> None:
        self.name = name
        if path is not None:
            try:
                text = Path(path).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise TemplateError(f"template.path={path}: cannot be read as UTF-8 text ({error})") from error
        if not isinstance(text, str):
            raise TemplateError(
                f"template {name!r}: no text; give template.text or template.path=<Jinja file with {{{{ response }}}}>"
            )
        self.text = text
        places = _RESPONSE.findall(text)
        if len(places) != 1:
            raise TemplateError(
                f"template {name!r}: {len(places)} places for the response; exactly one {{{{ response }}}} is needed. "
                f"The text is: {text!r}"
            )
        self.prompt_source, self.suffix_source = _RESPONSE.split(text)
        self.prompt(Example("instruction", "output", "input"))  # a mistake in the text shows now, not in mid-run
        self.suffix(Example("instruction", "output", "input"))

    def prompt(self, example: Example) -> str:
        """Everything before the first character of the response."""
        return self._render(self._prompt, example)

    def suffix(self, example: Example) -> str:
        """Everything behind the response, often nothing; end-of-text follows it."""
        return self._render(self._suffix, example)

    def response(self, example: Example) -> str:
        """The wanted output and the suffix: what is learnt."""
        return example.output + self.suffix(example)

    def full_text(self, example: Example) -> str:
        """Prompt, response and suffix."""
        return self.prompt(example) + self.response(example)

    def _render(self, template: jinja2.Template, example: Example) -> str:
        try:
            return template.render(instruction=example.instruction, input=example.input)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise TemplateError(
                f"template {self.name!r}: {error}; the variables are instruction, input and response"
            ) from error

    @cached_property
    def _prompt(self) -> jinja2.Template:
        return self._compile(self.prompt_source)

    @cached_property
    def _suffix(self) -> jinja2.Template:
        return self._compile(self.suffix_source)

    def _compile(self, source: str) -> jinja2.Template:
        try:
            return _ENVIRONMENT.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"template {self.name!r}, line {error.lineno}: {error.message} "
                "(the text before {{ response }} and the text behind it must each be complete)"
            ) from error
