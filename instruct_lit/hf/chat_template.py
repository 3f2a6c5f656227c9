"""The chat template of a model's tokenizer as a prompt template of ours."""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from instruct_lit.core.data.example import WHOLE, Example, listed
from instruct_lit.core.data.template import CHAT, Template
from instruct_lit.core.data.tokenizer import n_shared
from instruct_lit.errors import TemplateError
from instruct_lit.hf.special_tokens import GUARD
from instruct_lit.hf.tokenizer import HFTokenizer

_PLACEHOLDER = "\ufdd1"  # replaces a response while a conversation is rendered; Unicode excludes it from text

# The variable that `strftime_now` of a template formats, so that a prompt does not change from day to day.
DATE = "date"
_DATE_CALL = re.compile(r"""\bstrftime_now\s*\(\s*(?:format\s*=\s*)?(["'])([^"']*)\1\s*\)""")
_OTHER_DATE_CALL = re.compile(r"\bstrftime_now\b(?!\s+is\b)")
_DATE_MACRO = "macro strftime_now(format)"
_DATE_CODES = ["-d", "-m", *"aAbBdejmpyYHIMS"]


def with_chat(
    tokenizer: HFTokenizer,
    variables: Mapping[str, Any] | None = None,
    variant: str | None = None,
    thoughts: str = "keep",
) -> tuple[HFTokenizer, Template]:
    """Return a tokenizer that reads its own chat template as markup, and that template.

    Args:
        variables: of the template, such as `enable_thinking`; they become its defaults, also in the tokenizer and so in
            a bundle. `date` is what it takes for today.
        variant: the name of one of several templates; by default `default`.
        thoughts: `keep` those of the assistant's messages, `drop` them, or keep the `last` alone.

    Raises: TemplateError for an unknown name, for a date that is none, and what `ChatTemplate` raises.
    """
    text = fixed_template(tokenizer.hf.chat_template, variables or {}, variant)
    # As a comment it is in the key of the encoded data and in the bundle.
    tokenizer.hf.chat_template = text if thoughts == "keep" else f"{{#- thoughts: {thoughts} -#}}{text}"
    template = ChatTemplate(tokenizer)
    return HFTokenizer(tokenizer.hf, markup=True, end=template.end, bare=True), template


def fixed_template(text: Any, variables: Mapping[str, Any], variant: str | None = None) -> str:
    """The text of a chat template, one of several by name, with default values and a date put into it."""
    if isinstance(text, Mapping):
        if (variant or "default") not in text:
            raise _error(f"has no variant {variant or 'default'!r}", f"template.variant: allowed are {listed(text)}")
        text = text[variant or "default"]
    elif variant is not None:
        raise _error(f"has no variants, so template.variant={variant} is unknown", "leave it out")
    if not isinstance(text, str):
        raise _error("does not exist")
    given = str(variables.get(DATE, "2024-07-26"))  # by default that of Llama 3.1's template
    try:
        date = datetime.fromisoformat(given)
    except ValueError as error:
        raise _error(f"needs a date as 2024-07-26, found {given[:40]!r}", "see template.variables.date") from error
    text = _DATE_CALL.sub(lambda found: json.dumps(date.strftime(found[2]), ensure_ascii=False), text)
    defaults = ""
    if _OTHER_DATE_CALL.search(text) and _DATE_MACRO not in text:  # of a format that is computed
        shown = "".join(f" | replace('%{code}', '{date.strftime(f'%{code}')}')" for code in _DATE_CODES)
        defaults = f"{{%- {_DATE_MACRO} -%}}{{{{- format{shown} -}}}}{{%- endmacro -%}}"
    for name, value in variables.items():
        literal = "none" if value is None else json.dumps(value, ensure_ascii=False)
        if name != DATE:
            if not re.search(rf"\b{re.escape(name)}\b", text):
                raise _error(f"does not read the variable {name!r}", f"correct template.variables.{name}")
            defaults += f"{{%- if {name} is not defined -%}}{{%- set {name} = {literal} -%}}{{%- endif -%}}"
    return defaults + text


class ChatTemplate(Template):
    """Renders a conversation through the tokenizer's own template.

    The prompt of a turn is what the template renders for the messages before it with `add_generation_prompt=True`. The
    response is what it then adds to that with the assistant's message: answer, thoughts and calls with their markup, up
    to the token that closes a turn (`end`). Where a template renders an earlier turn otherwise than it was written
    (without its thoughts, for example), every turn is trained on in the text in which the model writes it. Users' text
    is protected (`instruct_lit.hf.special_tokens`).

    Raises:
        TemplateError: the tokenizer has no chat template, or its template does not render a response once and
            unchanged.
    """

    has_turns = has_system = has_tools = True  # the tokenizer's template refuses a conversation that it cannot render

    def __init__(self, tokenizer: HFTokenizer) -> None:
        self.name = CHAT
        self.tokenizer = tokenizer if tokenizer.markup else HFTokenizer(tokenizer.hf, markup=True)
        self.text = tokenizer.hf.chat_template
        if not isinstance(self.text, str):
            raise _error("does not exist")
        self._compared: set[tuple[bool, ...]] = set()  # kinds of conversations that were compared with transformers
        example = Example("instruction", "output", "input")
        asked, answer = self.messages(example)
        _, place, behind = self._conversation([asked, {**answer, "content": _PLACEHOLDER}]).partition(_PLACEHOLDER)
        if not place or _PLACEHOLDER in behind:
            raise _error("does not render a response exactly once")
        closing = self.tokenizer.special_tokens.find(behind)
        self.end: str | None = closing[0] if closing else None
        self._suffix_text = behind[: closing.start()] if closing else behind
        try:  # now, not during a run
            self.turns(example)
        except TemplateError as error:
            try:  # a prompt that opens a thought is followed by an answer with one
                self.turns(replace(example, messages=(asked, {**answer, "reasoning_content": "thought"})))
            except TemplateError:
                raise error from None

    def turns(self, example: Example) -> list[tuple[str, str]]:
        """Prompt and response of every turn, of the last alone where the template rewrites earlier ones.

        The response of a last answer without text, which is one to be generated, is not rendered.
        """
        messages, tools = self.messages(example), self._protected(example.tools)
        places = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
        pairs: list[tuple[str, str]] = []
        written = ""
        for n in places:
            last = n == places[-1]
            before = self._conversation(messages[:n], tools, add_generation_prompt=True)
            is_empty = not (messages[n]["content"] or messages[n].get("tool_calls"))
            response = "" if last and is_empty else self._response(messages[: n + 1], tools, before)
            if last:
                self._check_shown(messages[:n], tools, before)
            pairs = [*pairs, (before[len(written) :], response)] if before.startswith(written) else [(before, response)]
            # Where no token closes an answer, the template does not render the end-of-text that one is learnt with.
            written = before + response + (self.end or self.tokenizer.end)
        return pairs

    def renderings(self, example: Example) -> list[tuple[Example, list[tuple[str, str]]]]:
        example = replace(example, messages=self.with_thoughts(example.messages))
        turns = self.turns(example)
        self._compare(example, turns)
        n_turns = len(example.history) + 1
        if len(turns) == n_turns:
            return [(example, turns)]
        weights = example.weights or (1.0,) * n_turns
        whole = {**example.extra, WHOLE: example.user_text}
        pieces = [replace(example.first_turns(n), extra=whole, weights=weights[:n]) for n in range(1, n_turns + 1)]
        return [(piece, self.turns(piece)[-1:]) for piece in pieces if piece.weights[-1] > 0]

    def _compare(self, example: Example, turns: list[tuple[str, str]]) -> None:
        """Compare the ids of the first conversation of each kind with those of `apply_chat_template`.

        Raises: TemplateError when the ids before the first response differ. Later differences are a warning.
        """
        keys = {key for message in example.messages for key in message}
        has_results = any(message["role"] == "tool" for message in example.messages)
        kind = (bool(example.system), bool(example.history), bool(example.tools), has_results,
                "tool_calls" in keys, "reasoning_content" in keys)  # fmt: skip
        if kind in self._compared or not turns[-1][1]:
            return
        messages, tools = self.messages(example), self._protected(example.tools)
        places = [n for n, message in enumerate(messages) if message["role"] == "assistant"][-len(turns) :]
        if tools and turns[0][0] == self._conversation(messages[: places[0]], [], add_generation_prompt=True):
            raise _error("does not render tools", "choose another template (template=chatml)")
        if GUARD in json.dumps([messages, tools], ensure_ascii=False):  # which transformers does not know
            return
        self._compared.add(kind)
        end = [] if self.end is None else self.tokenizer.encode(self.end)
        ours: list[int] = []
        for number, (place, (before, response)) in enumerate(zip(places, turns, strict=True)):
            for text, more, n in ((before, {"add_generation_prompt": True}, place), (response, {}, place + 1)):
                ours += self.tokenizer.encode(text, ours) + (end if text is response else [])
                theirs = self.tokenizer.hf.apply_chat_template(
                    messages[:n], tools=tools or None, return_dict=False, **more
                )
                found = ours, list(theirs)[: len(ours)] if text is response else list(theirs)
                if found[0] != found[1]:
                    problem = f"has other ids in transformers: {self._difference(*found)}"
                    if number == 0 and text is before:
                        raise _error(problem)
                    warnings.warn(str(_error(problem, "the prompt is encoded as for generation")), stacklevel=2)
                    return

    def _difference(self, ours: list[int], theirs: list[int]) -> str:
        n = n_shared([ours, theirs], n_own=0)
        here, there = (f"{self.tokenizer.decode(ids[n : n + 4])!r} {ids[n : n + 4]}" for ids in (ours, theirs))
        return f"from token {n} on {here} here, {there} there"

    def prompt(self, example: Example) -> str:
        return self.turns(replace(example, output=""))[-1][0]

    def suffix(self, example: Example) -> str:
        """The text between the response and the token that closes the turn, mostly empty."""
        return self._suffix_text

    def response(self, example: Example) -> str:
        return self.turns(example)[-1][1]

    def messages(self, example: Example) -> list[dict[str, Any]]:
        """The whole conversation, protected."""
        if example.messages:
            return self._protected(self.with_thoughts(example.messages))
        asked = f"{example.instruction}\n\n{example.input}" if example.input else example.instruction
        said = [("system", example.system)] if example.system else []
        for user, assistant in (*example.history, (asked, example.output)):
            said += [("user", user), ("assistant", assistant)]
        return [{"role": role, "content": self.tokenizer.protect(text)} for role, text in said]

    def _response(self, messages: list[dict[str, Any]], tools: list[Any], before: str) -> str:
        """What the model writes as the last message."""
        whole = self._conversation(messages, tools)
        if not whole.startswith(before):
            if before.rstrip().endswith("<think>") and not messages[-1].get("reasoning_content"):
                problem = "opens a thought for generation, which the answer does not have"
                raise _error(problem, "give thoughts, or template.variables.enable_thinking=false")
            n = next((n for n, (a, b) in enumerate(zip(whole, before, strict=False)) if a != b), len(whole))
            raise _error(f"begins an answer by {whole[n:][:40]!r}, but for generation by {before[n:][:40]!r}")
        response = whole[len(before) :]
        if self.end is not None:
            response, end, _ = response.partition(self.end)
            if not end:
                raise _error(f"closes an answer by {response[-40:]!r}, not by {self.end!r}")
        answer = messages[-1]
        if not _is_shown(answer["content"], response):
            raise _error(f"changes the response {answer['content'][:60]!r} to {response[:100]!r}")
        if not _is_shown(answer.get("reasoning_content", ""), response):
            raise _error("does not render the thoughts of an answer", "data.thoughts=drop")
        if not all(_is_shown(call["function"]["name"], response) for call in answer.get("tool_calls", ())):
            raise _error("does not render the calls of an answer", "choose another template (template=chatml)")
        return response

    def _check_shown(self, messages: list[dict[str, Any]], tools: list[Any], prompt: str) -> None:
        """Raise TemplateError when a text of the conversation is not in the prompt."""
        for message in messages:
            if message["role"] != "assistant" and not _is_shown(message["content"], prompt):
                raise _error(f"does not render the text {message['content'][:60]!r} of the {message['role']}")
        for tool in tools:
            if not _is_shown(tool["function"]["name"], prompt):
                raise _error(f"does not render the tool {tool['function']['name'][:60]!r}")

    def _protected(self, value: Any) -> Any:
        """A copy with every text in it protected."""
        if isinstance(value, str):
            return self.tokenizer.protect(value)
        if isinstance(value, Mapping):
            return {self._protected(key): v if key == "role" else self._protected(v) for key, v in value.items()}
        return [self._protected(item) for item in value] if isinstance(value, list | tuple) else value

    def _conversation(
        self, messages: Sequence[Mapping[str, Any]], tools: list[Any] | None = None, add_generation_prompt: bool = False
    ) -> str:
        try:
            return self.tokenizer.hf.apply_chat_template(
                list(messages), tools=tools or None, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # Jinja's errors, and those that the template raises
            raise _error(f"rejects the conversation ({str(error)[:150]})") from error


def _is_shown(text: str, rendered: str) -> bool:
    """Whether a text is in a rendered one, but for white space around it, or as JSON."""
    return text.strip() in rendered or json.dumps(text, ensure_ascii=False)[1:-1] in rendered


def _error(problem: str, remedy: str = "choose another template (template=alpaca)") -> TemplateError:
    return TemplateError(f"template=chat: the model's chat template {problem}; {remedy}")
