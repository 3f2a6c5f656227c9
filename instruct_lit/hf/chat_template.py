"""The chat template that a tokenizer brings, as a prompt template of ours."""

from __future__ import annotations

from typing import Any

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.errors import TemplateError
from instruct_lit.hf.tokenizer import HFTokenizer

CHAT = "chat"  # the name of this template, in `conf/template` and in a bundle
_PLACE = "\ufdd1"  # stands for a response while a conversation is rendered; Unicode keeps it out of texts


def with_chat(tokenizer: HFTokenizer) -> tuple[HFTokenizer, Template]:
    """The tokenizer that reads its own chat template as markup, and that template."""
    template = ChatTemplate(tokenizer)
    return HFTokenizer(tokenizer.hf, markup=True, end=template.end, bare=True), template


class ChatTemplate(Template):
    """Renders an example as a conversation, through the tokenizer's own template.

    The response is found by rendering the conversation with a mark in its place: before it is the prompt, behind it the
    suffix, which ends with the token that closes a turn (`end`). Each response is rendered once more as itself, and
    must stand exactly there. What users wrote is escaped (`HFTokenizer.escape`), so none of it is markup.

    Raises TemplateError when the tokenizer has no chat template or its template cannot show a response.
    """

    def __init__(self, tokenizer: HFTokenizer) -> None:
        self.name, self.tokenizer = CHAT, tokenizer
        self.text = tokenizer.hf.chat_template
        if not isinstance(self.text, str):
            raise TemplateError("template=chat: the model's tokenizer has none; choose another (template=alpaca)")
        _, behind = self._halves(Example("instruction", "output"))
        found = tokenizer.first_special(behind)
        self.end: str | None = found[0] if found else None
        self.response(Example("instruction", "output", "input"))  # a template that cannot do it shows now

    def turns(self, example: Example) -> list[tuple[str, str]]:
        """Every turn, found as a single response is: by rendering the conversation with a mark for each answer."""
        if not example.history:
            return [(self.prompt(example), self.response(example))]
        answers = [self.tokenizer.escape(text) for text in (*(said for _, said in example.history), example.output)]
        asked = self.messages(example)
        whole = self._conversation([*asked, {"role": "assistant", "content": answers[-1]}])
        marked = [{**turn, "content": _PLACE} if turn["role"] == "assistant" else turn for turn in asked]
        between = self._conversation([*marked, {"role": "assistant", "content": _PLACE}]).split(_PLACE)
        turns, before = [], between[0]
        for answer, behind in zip(answers, between[1:], strict=False):
            end = self.tokenizer.first_special(behind)
            if end is None or end[0] != self.end:
                raise TemplateError(
                    f"template=chat: an earlier answer is not closed by {self.end!r} but by {behind[:40]!r}"
                )
            turns.append((before, answer + behind[: end.start()]))
            before = behind[end.end() :]
        for said in (answers, [answer.strip() for answer in answers]):
            if whole == between[0] + "".join(a + b for a, b in zip(said, between[1:], strict=False)):
                return [(b, said[n] + r[len(answers[n]) :]) for n, (b, r) in enumerate(turns)]
        raise TemplateError(f"template=chat: the model's template does not show every answer as it is: {whole[:200]!r}")

    def prompt(self, example: Example) -> str:
        return self._halves(example)[0]

    def suffix(self, example: Example) -> str:
        """What stands between the response and the token that closes the turn, mostly nothing."""
        behind = self._halves(example)[1]
        found = self.tokenizer.first_special(behind)
        return behind[: found.start()] if found else behind

    def response(self, example: Example) -> str:
        before, behind = self._halves(example)
        output = self.tokenizer.escape(example.output)
        whole = self._conversation([*self.messages(example), {"role": "assistant", "content": output}])
        for said in (output, output.strip()):
            if whole == before + said + behind:
                return said + self.suffix(example)
        raise TemplateError(
            f"template=chat: the response {example.output[:60]!r} is not shown as it is: "
            f"{whole[len(before) : len(whole) - len(behind)][:120]!r}"
        )

    def messages(self, example: Example) -> list[dict[str, str]]:
        """The conversation before the response."""
        asked = f"{example.instruction}\n\n{example.input}" if example.input else example.instruction
        said = [("system", example.system)] if example.system else []
        for user, assistant in example.history:
            said += [("user", user), ("assistant", assistant)]
        return [{"role": role, "content": self.tokenizer.escape(text)} for role, text in [*said, ("user", asked)]]

    def _halves(self, example: Example) -> tuple[str, str]:
        """What is rendered before and behind the response."""
        whole = self._conversation([*self.messages(example), {"role": "assistant", "content": _PLACE}])
        before, place, behind = whole.partition(_PLACE)
        if not place or _PLACE in behind:
            raise TemplateError("template=chat: the model's template does not show a response once; choose another")
        return before, behind

    def _conversation(self, messages: list[dict[str, Any]]) -> str:
        try:
            return self.tokenizer.hf.apply_chat_template(messages, tokenize=False)
        except Exception as error:  # jinja's errors, and what the template itself raises
            raise TemplateError(f"template=chat: the model's template refuses the conversation ({error})") from error
