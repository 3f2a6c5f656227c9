"""The prompt template: the only place where prompt text exists.

A template is a Jinja text with the variables `instruction`, `input` and `system` and exactly one `{{ response }}`. What
stands before the response place is the prompt (the response header included), what stands behind it the suffix. The two
halves are rendered apart, so no text of a user can move the boundary between them. A second such text, `next_turn`, is
the form of every further turn of a conversation.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Protocol

import jinja2
import jinja2.meta

from instruct_lit.core.data.example import Example
from instruct_lit.core.jinja_environments import text_environment
from instruct_lit.errors import TemplateError

CHAT = "chat"  # the name of a model's own chat template, in `conf/template` and in a bundle
_RESPONSE = re.compile(r"\{\{-?\s*response\s*-?\}\}")


class Protects(Protocol):
    """The part of a tokenizer that a template uses."""

    def protect(self, text: str) -> str: ...


class Template:
    """Renders an example to its prompt and its full text, and a conversation to its turns.

    Raises TemplateError when the text has no place for the response or more than one, is no valid Jinja, or uses a
    variable that does not exist.
    """

    next_turn: Template | None = None
    protect: Callable[[str], str] = staticmethod(lambda text: text)  # keeps special tokens in users' text ordinary text

    def __init__(
        self, name: str, text: str | None = None, path: str | Path | None = None, next_turn: str | None = None
    ) -> None:
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
        self.next_turn = Template(f"{name}.next_turn", next_turn) if next_turn is not None else None

    def for_tokenizer(self, tokenizer: Protects) -> Template:
        """The same template with users' text protected as the tokenizer needs it (`special_tokens`)."""
        template = copy.copy(self)
        template.protect = tokenizer.protect  # type: ignore[method-assign]
        template.next_turn = self.next_turn.for_tokenizer(tokenizer) if self.next_turn is not None else None
        return template

    def turns(self, example: Example) -> list[tuple[str, str]]:
        """The whole example as text: for every turn what stands before the response, and `response`.

        End-of-text follows every response, so it stands between the turns too. Raises TemplateError when the template
        has no form for several turns or no place for a system prompt.
        """
        if example.system and not self.has_system:
            raise TemplateError(
                f"template {self.name!r}: no place for the system prompt {example.system[:60]!r}; put {{{{ system }}}} "
                "into it, or choose another (template=chatml)"
            )
        if not example.history:
            return [(self.prompt(example), self.response(example))]
        if self.next_turn is None:
            raise TemplateError(
                f"template {self.name!r}: no form for a conversation of several turns; give template.next_turn, or "
                "choose another (template=chatml)"
            )
        asked = [Example(user, assistant) for user, assistant in example.history]
        first = Example(asked[0].instruction, asked[0].output, system=example.system)
        later = [*asked[1:], Example(example.instruction, example.output, example.input)]
        form = self.next_turn
        return [
            (self.prompt(first), self.response(first)),
            *((form.prompt(turn), form.response(turn)) for turn in later),
        ]

    @property
    def has_turns(self) -> bool:
        """Whether earlier turns of a conversation have a place."""
        return self.next_turn is not None

    @cached_property
    def has_system(self) -> bool:
        """Whether a system prompt has a place."""
        return "system" in jinja2.meta.find_undeclared_variables(text_environment().parse(self.prompt_source))

    def prompt(self, example: Example) -> str:
        """Everything before the first character of the response, of an example without earlier turns."""
        return self._render(self._prompt, example)

    def suffix(self, example: Example) -> str:
        """Everything behind the response, often nothing; end-of-text follows it."""
        return self._render(self._suffix, example)

    def response(self, example: Example) -> str:
        """The wanted output and the suffix: what is learnt."""
        return self.protect(example.output) + self._render(self._suffix, example)

    def full_text(self, example: Example) -> str:
        """Prompt, response and suffix."""
        return self.prompt(example) + self.response(example)

    def _render(self, template: jinja2.Template, example: Example) -> str:
        try:
            asked = {name: self.protect(getattr(example, name)) for name in ("instruction", "input", "system")}
            return template.render(**asked)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise TemplateError(
                f"template {self.name!r}: {error}; the variables are instruction, input, system and response"
            ) from error

    @cached_property
    def _prompt(self) -> jinja2.Template:
        return self._compile(self.prompt_source)

    @cached_property
    def _suffix(self) -> jinja2.Template:
        return self._compile(self.suffix_source)

    def _compile(self, source: str) -> jinja2.Template:
        try:
            return text_environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"template {self.name!r}, line {error.lineno}: {error.message} "
                "(the text before {{ response }} and the text behind it must each be complete)"
            ) from error
