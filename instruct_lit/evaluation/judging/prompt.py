"""The prompts of a judge and the parsing of its replies: prompt files, unforgeable delimiters, JSON verdicts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jinja2

from instruct_lit.core.jinja_environments import compile_text, failure
from instruct_lit.errors import TemplateError

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
# A bare number, perhaps with a label and the end of the scale; a number within a sentence may mean anything else.
_PLAIN = re.compile(
    r"[^\w{]*?(?:(?:score|rating|grade)\W*?)?(-?\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*(\d+))?\W*", re.IGNORECASE
)


class Verdict(Protocol):
    """The form of a reply: its description for the prompt, its JSON schema, all possible replies, and its parser."""

    @property
    def request(self) -> str: ...
    @property
    def schema(self) -> dict[str, Any]: ...
    @property
    def replies(self) -> list[str]: ...
    def read(self, reply: str) -> Any: ...


@dataclass(frozen=True)
class Score:
    """An integer from `low` to `high`, with `explain` after one sentence of reason."""

    low: int = 0
    high: int = 100
    explain: bool = False

    @property
    def request(self) -> str:
        """The sentence of the prompt that asks for this form."""
        reason = '"reason": "<one sentence>", ' if self.explain else ""
        return f'Reply with JSON alone: {{{reason}"score": <whole number>}}, the number from {self.low} to {self.high}.'

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema for constrained decoding."""
        return _schema({"score": {"type": "integer", "minimum": self.low, "maximum": self.high}}, self.explain)

    @property
    def replies(self) -> list[str]:
        """Every reply in this form, without a reason."""
        return [json.dumps({"score": value}) for value in range(self.low, self.high + 1)]

    def read(self, reply: str) -> float | None:
        """The score in a reply, as JSON or a bare number; None for anything else and for a score out of range."""
        found = _json(reply)
        if found is not None:
            value = found.get("score")
            texts = [str(value)] if isinstance(value, int | float | str) and not isinstance(value, bool) else []
        else:
            plain = _PLAIN.fullmatch(reply)
            texts = [plain[1]] if plain and float(plain[2] or self.high) == self.high else []
        if len(texts) != 1 or not _NUMBER.fullmatch(texts[0].strip()):
            return None
        score = float(texts[0])
        return score if self.low <= score <= self.high else None


@dataclass(frozen=True)
class Choice:
    """The better of two responses: `A`, `B` or `tie`."""

    explain: bool = False

    @property
    def request(self) -> str:
        """The sentence of the prompt that asks for this form."""
        reason = '"reason": "<one sentence>", ' if self.explain else ""
        forms = [f'{{{reason}"better": "{value}"}}' for value in ("A", "B", "tie")]
        return f"Reply with JSON alone: {forms[0]}, {forms[1]} or {forms[2]}."

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema for constrained decoding."""
        return _schema({"better": {"type": "string", "enum": ["A", "B", "tie"]}}, self.explain)

    @property
    def replies(self) -> list[str]:
        """Every reply in this form, without a reason."""
        return [json.dumps({"better": value}) for value in ("A", "B", "tie")]

    def read(self, reply: str) -> str | None:
        """The choice in a reply, None where there is none."""
        found = _json(reply)
        text = str(found.get("better")) if found is not None else reply
        word = re.sub(r"^answer\s+|[^a-z\s]", "", text.strip().lower()).strip()
        return {"a": "A", "b": "B", "tie": "tie"}.get(word)


class JudgePrompt:
    """A prompt template in Jinja, rendered with texts between delimiters that they cannot contain.

    Every non-empty text `name` is passed to the template as a block between `<name mark>` and `</name mark>`. The mark
    is a hash of all texts, lengthened until it occurs in none, so that no response can close its block. The other
    variables are `mark`, `request` (the form of the reply), `low` and `high` (the scale).

    Raises: TemplateError for an invalid template and for one without `request`.
    """

    def __init__(self, name: str, text: str, verdict: Verdict, fields: tuple[str, ...]) -> None:
        self.name, self.verdict, self.fields = name, verdict, fields
        try:
            self._template = compile_text(text)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"judge prompt {name!r}, line {error.lineno}: {error.message}") from error
        if verdict.request not in self.render(dict.fromkeys(fields, "text")):
            raise TemplateError(f"judge prompt {name!r}: {{{{ request }}}} is missing, the form of the reply; add it")

    def render(self, texts: Mapping[str, str]) -> str:
        """The prompt for these texts; missing ones are empty."""
        values = {name: str(texts.get(name) or "") for name in self.fields}
        mark = _mark(list(values.values()))
        blocks = {name: f"<{name} {mark}>\n{text}\n</{name} {mark}>" if text else "" for name, text in values.items()}
        ends = {name: getattr(self.verdict, name) for name in ("low", "high") if hasattr(self.verdict, name)}
        try:
            return self._template.render(mark=mark, request=self.verdict.request, **ends, **blocks).strip()
        except Exception as error:
            names = ", ".join((*self.fields, "mark", "request", *ends))
            raise TemplateError(f"judge prompt {self.name!r}: {failure(error)}; the variables are {names}") from error


def texts_of(row: Mapping[str, Any]) -> dict[str, str]:
    """The texts of an answered record for a prompt; system prompt and earlier turns become `history`."""
    said = [("System", row.get("system") or "")]
    said += [pair for user, model in row.get("history") or () for pair in (("User", user), ("Assistant", model))]
    texts = {name: row.get(name) or "" for name in ("instruction", "input", "output", "response")}
    return {**texts, "history": "\n".join(f"{who}: {text}" for who, text in said if text)}


def _mark(texts: list[str]) -> str:
    mark = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    for n_digits in range(6, len(mark)):
        if not any(mark[:n_digits] in text for text in texts):
            return mark[:n_digits]
    raise AssertionError("texts that contain their own hash")


def _schema(properties: dict[str, Any], explain: bool) -> dict[str, Any]:
    reason = {"reason": {"type": "string"}} if explain else {}
    properties = {**reason, **properties}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _json(reply: str) -> dict[str, Any] | None:
    """The JSON object in a reply, which may have text around it."""
    start, end = reply.find("{"), reply.rfind("}")
    try:
        found = json.loads(reply[start : end + 1])
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
