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

import jinja2
import jinja2.meta

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.tokenizer import Tokenizer
from instruct_lit.core.jinja_environments import compile_text, failure, text_environment
from instruct_lit.errors import TemplateError

CHAT = "chat"  # the name of a model's own chat template, in `conf/template` and in a bundle
VARIABLES = ("instruction", "input", "system")
_RESPONSE = re.compile(r"\{\{-?\s*response\s*-?\}\}")


class Template:
    """Renders an example to its prompt and its full text, and a conversation to its turns.

    `has_turns` and `has_system` say whether earlier turns and a system prompt have a place.

    Raises: TemplateError unless the text is valid Jinja with exactly one `{{ response }}` and known variables only.
    """

    next_turn: Template | None = None
    protect: Callable[[str], str] = staticmethod(lambda text: text)  # keeps special tokens in users' text ordinary text

    def __init__(self, name: str, text: str | None, next_turn: str | None = None) -> None:
        place = "{{ response }}"
        if not isinstance(text, str):
            remedy = f"give template.text or template.path=<Jinja file with {place}>"
            raise TemplateError(f"template {name!r}: no text; {remedy}")
        parts = _RESPONSE.split(text)
        if len(parts) != 2:
            found = f"{place} occurs {len(parts) - 1} times; exactly one is needed"
            raise TemplateError(f"template {name!r}: {found}. The text is: {text!r}")
        self.name, self.text = name, text
        self.prompt_source, self.suffix_source = parts
        try:
            self._prompt, self._suffix = map(compile_text, parts)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"template {name!r}, line {error.lineno}: {error.message} "
                "(the text before {{ response }} and the text after it must each be complete)"
            ) from error
        self.turns(Example("instruction", "output", "input"))  # an error of the text is raised here, not during a run
        # Only now: this evaluates constants, without limits.
        variables = jinja2.meta.find_undeclared_variables(text_environment().parse(self.prompt_source))
        self.next_turn = Template(f"{name}.next_turn", next_turn) if next_turn is not None else None
        self.has_system, self.has_turns = "system" in variables, next_turn is not None

    def for_tokenizer(self, tokenizer: Tokenizer) -> Template:
        """The same template with users' text protected as the tokenizer needs it (`special_tokens`)."""
        template = copy.copy(self)
        template.protect = tokenizer.protect  # type: ignore[method-assign]
        template.next_turn = self.next_turn.for_tokenizer(tokenizer) if self.next_turn is not None else None
        return template

    def turns(self, example: Example) -> list[tuple[str, str]]:
        """The whole example as text: prompt and response of every turn; end-of-text follows each response.

        Raises: TemplateError when the template supports no further turns or no system prompt.
        """
        missing = None
        if example.messages:
            raise TemplateError(f"template {self.name!r}: no place for tools, calls or thoughts; use template=chat")
        if example.system and not self.has_system:
            missing = f"{{{{ system }}}} for the system prompt {example.system[:60]!r}; add it"
        elif example.history and self.next_turn is None:
            missing = "next_turn for a conversation of several turns; give template.next_turn"
        if missing is not None:
            raise TemplateError(f"template {self.name!r}: no {missing} or use template=chatml")
        if not example.history or self.next_turn is None:
            return [(self.prompt(example), self.response(example))]
        (user, assistant), *others = example.history
        first = Example(user, assistant, system=example.system)
        later = [*(Example(*turn) for turn in others), Example(example.instruction, example.output, example.input)]
        pairs = [(self, first), *((self.next_turn, turn) for turn in later)]
        return [(template.prompt(turn), template.response(turn)) for template, turn in pairs]

    def renderings(self, example: Example) -> list[tuple[Example, list[tuple[str, str]]]]:
        """What is trained on, with its turns: the example, or each of its turns where it stands in another text."""
        return [(example, self.turns(example))]

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
