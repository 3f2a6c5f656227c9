"""The prompt template: the only place where prompt text exists.

A template is Jinja text with the variables `instruction`, `input`, `system` and `tools` (JSON in lines) and exactly one
`{{ response }}`. The text before it is the prompt (response header included), the text after it the suffix. The two are
rendered separately, so that no user text can move the boundary between them. A second such text, `next_turn`, renders
every further turn of a conversation.
"""

from __future__ import annotations

import copy
import json
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jinja2
import jinja2.meta

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.tokenizer import Tokenizer, closed, encode_turns
from instruct_lit.core.jinja_environments import compile_text, failure, text_environment
from instruct_lit.errors import TemplateError

CHAT = "chat"  # the name of a model's own chat template, in `conf/template` and in a bundle
VARIABLES = ("instruction", "input", "system")
THOUGHTS = re.compile(r"\A\{#- thoughts: (\w+) [-+]#\}")  # at the start of a text: `Template.thoughts`
# Write a conversation with calls, results and thoughts as one of texts; `datasets` adds one.
AS_TEXTS: list[Callable[[Example], Example]] = []
_RESPONSE = re.compile(r"\{\{-?\s*response\s*-?\}\}")


class Template:
    """Renders an example to its prompt and its full text, and a conversation to its turns.

    `has_turns`, `has_system` and `has_tools` say whether these have a place, `absent` which of `VARIABLES` have none.

    Raises: TemplateError unless the text is valid Jinja with exactly one `{{ response }}` and known variables only.
    """

    next_turn: Template | None = None
    has_turns = has_system = has_tools = False
    protect: Callable[[str], str] = staticmethod(lambda text: text)  # keeps special tokens in users' text ordinary text

    def __init__(self, name: str, text: str | None, next_turn: str | None = None) -> None:
        self.name, self.text = name, text or ""
        parts = _RESPONSE.split(self.text)
        if len(parts) != 2:
            found = f"{{{{ response }}}} occurs {len(parts) - 1} times in {reprlib.repr(text)}; exactly one is needed"
            raise TemplateError(f"template {name!r}: {found} (template.text, or template.path=<Jinja file>)")
        self.prompt_source, self.suffix_source = parts
        try:
            self._prompt, self._suffix = map(compile_text, parts)
        except jinja2.TemplateSyntaxError as error:
            rule = "the text before {{ response }} and the text after it must each be complete"
            raise TemplateError(f"template {name!r}, line {error.lineno}: {error.message} ({rule})") from error
        self.turns(Example("instruction", "output", "input"))  # an error of the text is raised here, not during a run
        # Only now: this evaluates constants, without limits.
        variables = jinja2.meta.find_undeclared_variables(text_environment().parse(self.prompt_source))
        self.next_turn = Template(f"{name}.next_turn", next_turn) if next_turn is not None else None
        self.absent = [name for name in VARIABLES if name not in variables]
        self.has_system, self.has_tools = "system" in variables, "tools" in variables
        self.has_turns = next_turn is not None

    def for_tokenizer(self, tokenizer: Tokenizer) -> Template:
        """The same template with users' text protected as the tokenizer needs it (`special_tokens`)."""
        template = copy.copy(self)
        template.protect = tokenizer.protect  # type: ignore[method-assign]
        template.next_turn = self.next_turn.for_tokenizer(tokenizer) if self.next_turn is not None else None
        return template

    def prompt_ids(self, example: Example, tokenizer: Tokenizer) -> list[int]:
        """Token ids of an example's prompt, earlier turns included; the same in training and in generation."""
        *earlier, (last_prompt, _) = encode_turns(tokenizer, [self.turns(example)])[0]
        ids = list(tokenizer.prompt_start)
        for prompt, response in earlier:
            ids += [*prompt, *closed(response, tokenizer.eot_id)]
        return ids + last_prompt

    def turns(self, example: Example) -> list[tuple[str, str]]:
        """The whole example as text: prompt and response of every turn; end-of-text follows each response.

        Raises: TemplateError when the template supports no further turns or no system prompt.
        """
        for given, has, place in (
            (example.tools, self.has_tools, "{{ tools }}"),
            (example.system, self.has_system, "{{ system }}"),
            (example.history, self.has_turns, "template.next_turn"),
        ):
            if given and not has:
                raise self._without(place, given)
        if example.messages:
            example = AS_TEXTS[0](replace(example, messages=self.with_thoughts(example.messages)))
        # Each turn by itself; the system prompt and the tools are those of the first.
        turns = [*(Example(*turn) for turn in example.history), replace(example, system="", history=(), tools=())]
        first = replace(turns[0], system=example.system, tools=example.tools)
        later = self.next_turn or self
        pairs = [(later.prompt(turn), later.response(turn)) for turn in turns[1:]]
        return [(self.prompt(first), self.response(first)), *pairs]

    @property
    def thoughts(self) -> str:
        """Which thoughts of a conversation are learnt: all (`keep`), none (`drop`), or those of the `last` turn."""
        found = THOUGHTS.match(self.text)
        return found[1] if found else "keep"

    def with_thoughts(self, messages: tuple[Mapping[str, Any], ...]) -> tuple[Mapping[str, Any], ...]:
        """The messages with the thoughts that are learnt."""
        ends = [m for m in messages if m["role"] == "assistant"]
        kept = [id(m) for m in {"keep": ends, "last": ends[-1:]}.get(self.thoughts, ())]
        return tuple(m if id(m) in kept else {key: m[key] for key in m if key != "reasoning_content"} for m in messages)

    def renderings(self, example: Example) -> list[tuple[Example, list[tuple[str, str]]]]:
        """What is trained on, with its turns: the example, or each of its turns where it stands in another text.

        Raises: TemplateError as `turns`, and when the template has no place for the instruction or the input.
        """
        last = (self.next_turn if example.history else None) or self
        for form, name in ((self, "instruction"), (last, "instruction"), (last, "input")):
            if name in form.absent and (given := getattr(example, name)):
                raise form._without(f"{{{{ {name} }}}}", given)
        return [(example, self.turns(example))]

    def _without(self, place: str, given: Any) -> TemplateError:
        found = f"no {place} for {reprlib.repr(given)}"
        return TemplateError(f"template {self.name!r}: {found}; add it or use template=chatml")

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
        texts = {name: getattr(example, name) for name in VARIABLES}
        texts["tools"] = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in example.tools)
        try:
            return template.render({name: self.protect(text) for name, text in texts.items()})
        except Exception as error:
            allowed = "allowed variables are instruction, input, system, tools and response"
            raise TemplateError(f"template {self.name!r}: {failure(error)}; {allowed}") from error
