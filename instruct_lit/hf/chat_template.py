"""The chat template of a model's tokenizer as a prompt template of ours."""

from __future__ import annotations

from typing import Any

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import CHAT, Template
from instruct_lit.errors import TemplateError
from instruct_lit.hf.tokenizer import HFTokenizer

_PLACEHOLDER = "\ufdd1"  # replaces a response while a conversation is rendered; Unicode excludes it from text


def with_chat(tokenizer: HFTokenizer) -> tuple[HFTokenizer, Template]:
    """Return a tokenizer that reads its own chat template as markup, and that template."""
    template = ChatTemplate(tokenizer)
    return HFTokenizer(tokenizer.hf, markup=True, end=template.end, bare=True), template


class ChatTemplate(Template):
    """Renders an example as a conversation, through the tokenizer's own template.

    The conversation is rendered with a placeholder for the response: the text before it is the prompt, the text after
    it the suffix, which ends with the token that closes a turn (`end`). Then it is rendered with the response itself,
    which must be exactly there. Users' text is protected (`instruct_lit.hf.special_tokens`).

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
        _, behind = self._halves(Example("instruction", "output"))
        found = self.special_tokens.find(behind)
        self.end: str | None = found[0] if found else None
        self.response(Example("instruction", "output", "input"))  # fails now if the template cannot render it

    def turns(self, example: Example) -> list[tuple[str, str]]:
        """Every turn, found by rendering the conversation with a placeholder for each answer."""
        if not example.history:
            return [(self.prompt(example), self.response(example))]
        answers = [self.tokenizer.protect(text) for text in (*(said for _, said in example.history), example.output)]
        asked = self.messages(example)
        whole = self._conversation([*asked, {"role": "assistant", "content": answers[-1]}])
        marked = [{**turn, "content": _PLACEHOLDER} if turn["role"] == "assistant" else turn for turn in asked]
        between = self._conversation([*marked, {"role": "assistant", "content": _PLACEHOLDER}]).split(_PLACEHOLDER)
        turns, before = [], between[0]
        for answer, behind in zip(answers, between[1:], strict=False):
            end = self.special_tokens.find(behind)
            if end is None or end[0] != self.end:
                raise _error(f"closes an earlier answer by {behind[:40]!r}, not by {self.end!r}")
            turns.append((before, answer + behind[: end.start()]))
            before = behind[end.end() :]
        for said in (answers, [answer.strip() for answer in answers]):
            if whole == between[0] + "".join(a + b for a, b in zip(said, between[1:], strict=False)):
                return [(b, said[n] + r[len(answers[n]) :]) for n, (b, r) in enumerate(turns)]
        raise _error(f"changes an answer of {whole[:150]!r}")

    def prompt(self, example: Example) -> str:
        return self._halves(example)[0]

    def suffix(self, example: Example) -> str:
        """The text between the response and the token that closes the turn, mostly empty."""
        behind = self._halves(example)[1]
        found = self.special_tokens.find(behind)
        return behind[: found.start()] if found else behind

    def response(self, example: Example) -> str:
        before, behind = self._halves(example)
        output = self.tokenizer.protect(example.output)
        whole = self._conversation([*self.messages(example), {"role": "assistant", "content": output}])
        for said in (output, output.strip()):
            if whole == before + said + behind:
                return said + self.suffix(example)
        rendered = whole[len(before) : len(whole) - len(behind)]
        raise _error(f"changes the response {example.output[:60]!r} to {rendered[:100]!r}")

    def messages(self, example: Example) -> list[dict[str, str]]:
        """The conversation before the response."""
        asked = f"{example.instruction}\n\n{example.input}" if example.input else example.instruction
        said = [("system", example.system)] if example.system else []
        for user, assistant in example.history:
            said += [("user", user), ("assistant", assistant)]
        return [{"role": role, "content": self.tokenizer.protect(text)} for role, text in [*said, ("user", asked)]]

    def _halves(self, example: Example) -> tuple[str, str]:
        """The rendered text before and after the response."""
        whole = self._conversation([*self.messages(example), {"role": "assistant", "content": _PLACEHOLDER}])
        before, place, behind = whole.partition(_PLACEHOLDER)
        if not place or _PLACEHOLDER in behind:
            raise _error("does not render a response exactly once")
        return before, behind

    def _conversation(self, messages: list[dict[str, Any]]) -> str:
        try:
            return self.tokenizer.hf.apply_chat_template(messages, tokenize=False)
        except Exception as error:  # Jinja's errors, and those that the template raises
            raise _error(f"rejects the conversation ({str(error)[:150]})") from error


def _error(problem: str) -> TemplateError:
    return TemplateError(
        f"template=chat: the model's chat template {problem}; choose another template (template=alpaca)"
    )
