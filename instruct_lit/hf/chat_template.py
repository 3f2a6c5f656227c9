"""The chat template of a model's tokenizer as a prompt template of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from instruct_lit.core.data.example import WHOLE, Example
from instruct_lit.core.data.template import CHAT, Template
from instruct_lit.errors import TemplateError
from instruct_lit.hf.tokenizer import HFTokenizer

_PLACEHOLDER = "\ufdd1"  # replaces a response while a conversation is rendered; Unicode excludes it from text


def with_chat(tokenizer: HFTokenizer) -> tuple[HFTokenizer, Template]:
    """Return a tokenizer that reads its own chat template as markup, and that template."""
    template = ChatTemplate(tokenizer)
    return HFTokenizer(tokenizer.hf, markup=True, end=template.end, bare=True), template


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

    has_turns = has_system = True  # the tokenizer's template refuses a conversation that it cannot render

    def __init__(self, tokenizer: HFTokenizer) -> None:
        self.name = CHAT
        self.tokenizer = tokenizer if tokenizer.markup else HFTokenizer(tokenizer.hf, markup=True)
        self.text = tokenizer.hf.chat_template
        if not isinstance(self.text, str):
            raise _error("does not exist")
        self.special_tokens = self.tokenizer.special_tokens
        example = Example("instruction", "output", "input")
        asked, answer = self.messages(example)
        _, place, behind = self._conversation([asked, {**answer, "content": _PLACEHOLDER}]).partition(_PLACEHOLDER)
        if not place or _PLACEHOLDER in behind:
            raise _error("does not render a response exactly once")
        found = self.special_tokens.find(behind)
        self.end: str | None = found[0] if found else None
        self._suffix_text = behind[: found.start()] if found else behind
        self.turns(example)  # fails now if the template cannot render it

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
            response = "" if last and not _content(messages[n]) else self._response(messages[: n + 1], tools, before)
            if last:
                self._check_shown(messages[:n], tools, before)
            pairs = [*pairs, (before[len(written) :], response)] if before.startswith(written) else [(before, response)]
            written = before + response + (self.end or "")
        return pairs

    def renderings(self, example: Example) -> list[tuple[Example, list[tuple[str, str]]]]:
        turns = self.turns(example)
        n_turns = len(example.history) + 1
        if len(turns) == n_turns:
            return [(example, turns)]
        weights = example.weights or (1.0,) * n_turns
        whole = {**example.extra, WHOLE: example.user_text}
        pieces = [replace(example.first_turns(n), extra=whole, weights=weights[:n]) for n in range(1, n_turns + 1)]
        return [(piece, self.turns(piece)[-1:]) for piece in pieces if piece.weights[-1] > 0]

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
            return self._protected(example.messages)
        asked = f"{example.instruction}\n\n{example.input}" if example.input else example.instruction
        said = [("system", example.system)] if example.system else []
        for user, assistant in (*example.history, (asked, example.output)):
            said += [("user", user), ("assistant", assistant)]
        return [{"role": role, "content": self.tokenizer.protect(text)} for role, text in said]

    def _response(self, messages: list[dict[str, Any]], tools: list[Any], before: str) -> str:
        """What the model writes as the last message."""
        whole = self._conversation(messages, tools)
        if not whole.startswith(before):
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
            raise _error("does not render the calls of an answer")
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


def _content(message: Mapping[str, Any]) -> Any:
    return message["content"] or message.get("tool_calls")


def _is_shown(text: str, rendered: str) -> bool:
    """Whether a text is in a rendered one, but for white space around it, or as JSON."""
    return text.strip() in rendered or json.dumps(text, ensure_ascii=False)[1:-1] in rendered


def _error(problem: str, remedy: str = "choose another template (template=alpaca)") -> TemplateError:
    return TemplateError(f"template=chat: the model's chat template {problem}; {remedy}")
