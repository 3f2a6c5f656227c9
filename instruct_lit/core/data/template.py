"""The prompt template: the only place where prompt text exists.

A template is Jinja text with the variables `instruction`, `input` and `system` and exactly one `{{ response }}`. The
text before the response is the prompt (response header included), the text after it the suffix. The two are rendered
separately, so that no user text can move the boundary between them. A second such text, `next_turn`, renders every
further turn of a conversation.
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
from instruct_lit.core.jinja_environments import compile_text, failure, text_environment
from instruct_lit.errors import TemplateError

CHAT = "chat"  # the name of a model's own chat template, in `conf/template` and in a bundle
VARIABLES = ("instruction", "input", "system")
_RESPONSE = re.compile(r"\{\{-?\s*response\s*-?\}\}")


class Protects(Protocol):
    """The part of a tokenizer that a template uses."""

    def protect(self, text: str) -> str: ...


class Template:
    """Renders an example to its prompt and its full text, and a conversation to its turns.

    Raises: TemplateError unless the text is valid Jinja with exactly one `{{ response }}` and known variables only.
    """

    next_turn: Template | None = None
    protect: Callable[[str], str] = staticmethod(lambda text: text)  # keeps special tokens in users' text ordinary text

    def __init__(
        self, name: str, text: str | None = None, path: str | Path | None = None, next_turn: str | None = None
    ) -> None:
        self.name = name
        place = "{{ response }}"
        if path is not None:
            try:
                text = Path(path).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise TemplateError(f"template.path={path}: cannot be read as UTF-8 text ({error})") from error
        if not isinstance(text, str):
            remedy = f"give template.text or template.path=<Jinja file with {place}>"
            raise TemplateError(f"template {name!r}: no text; {remedy}")
        self.text = text
        parts = _RESPONSE.split(text)
        if len(parts) != 2:
            found = f"{place} occurs {len(parts) - 1} times; exactly one is needed"
            raise TemplateError(f"template {name!r}: {found}. The text is: {text!r}")
        self.prompt_source, self.suffix_source = parts
        self.prompt(Example("instruction", "output", "input"))  # an error in the text is raised here, not during a run
        self.suffix(Example("instruction", "output", "input"))
        self.next_turn = Template(f"{name}.next_turn", next_turn) if next_turn is not None else None

    def for_tokenizer(self, tokenizer: Protects) -> Template:
        """The same template with users' text protected as the tokenizer needs it (`special_tokens`)."""
        template = copy.copy(self)
        template.protect = tokenizer.protect  # type: ignore[method-assign]
        template.next_turn = self.next_turn.for_tokenizer(tokenizer) if self.next_turn is not None else None
        return template

    def turns(self, example: Example) -> list[tuple[str, str]]:
        """The whole example as text: prompt and response of every turn; end-of-text follows each response.

        Raises: TemplateError when the template supports no further turns or no system prompt.
        """
        if example.system and not self.has_system:
            what = f"{{{{ system }}}} for the system prompt {example.system[:60]!r}; add it"
            raise TemplateError(f"template {self.name!r}: no {what} or use template=chatml")
        if not example.history:
            return [(self.prompt(example), self.response(example))]
        if self.next_turn is None:
            what = "next_turn for a conversation of several turns; give template.next_turn"
            raise TemplateError(f"template {self.name!r}: no {what} or use template=chatml")
        (user, assistant), *others = example.history
        first = Example(user, assistant, system=example.system)
        later = [*(Example(*turn) for turn in others), Example(example.instruction, example.output, example.input)]
        pairs = [(self, first), *((self.next_turn, turn) for turn in later)]
        return [(template.prompt(turn), template.response(turn)) for template, turn in pairs]

    @property
    def has_turns(self) -> bool:
        """Whether earlier turns of a conversation have a place."""
        return self.next_turn is not None

    @cached_property
    def has_system(self) -> bool:
        """Whether the template renders a system prompt."""
        return "system" in jinja2.meta.find_undeclared_variables(text_environment().parse(self.prompt_source))

    def prompt(self, example: Example) -> str:
        """The text before the response, of an example without earlier turns."""
        return self._render(self._prompt, example)

    def suffix(self, example: Example) -> str:
        """The text between response and end-of-text, often empty."""
        return self._render(self._suffix, example)

    def response(self, example: Example) -> str:
        """The target output and the suffix: what is trained on."""
        return self.protect(example.output) + self._render(self._suffix, example)

    def _render(self, template: jinja2.Template, example: Example) -> str:
        try:
            return template.render({name: self.protect(getattr(example, name)) for name in VARIABLES})
        except Exception as error:
            allowed = "allowed variables are instruction, input, system and response"
            raise TemplateError(f"template {self.name!r}: {failure(error)}; {allowed}") from error

    @cached_property
    def _prompt(self) -> jinja2.Template:
        return self._compile(self.prompt_source)

    @cached_property
    def _suffix(self) -> jinja2.Template:
        return self._compile(self.suffix_source)

    def _compile(self, source: str) -> jinja2.Template:
        try:
            return compile_text(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"template {self.name!r}, line {error.lineno}: {error.message} "
                "(the text before {{ response }} and the text after it must each be complete)"
            ) from error
