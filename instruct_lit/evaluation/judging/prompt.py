"""What a judge is asked and how its reply is read: prompt files, marks that no answer can forge, JSON verdicts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jinja2

from instruct_lit.core.jinja_environments import text_environment
from instruct_lit.errors import TemplateError

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
# A number alone, or with its name and the end of the scale: in a sentence it may count something else.
_PLAIN = re.compile(
    r"[^\w{]*?(?:(?:score|rating|grade)\W*?)?(-?\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*(\d+))?\W*", re.IGNORECASE
)


class Verdict(Protocol):
    """A form that replies have: asked for in words, as a JSON schema, as the list of all of them, and read back."""

    @property
    def request(self) -> str: ...
    @property
    def schema(self) -> dict[str, Any]: ...
    @property
    def replies(self) -> list[str]: ...
    def read(self, reply: str) -> Any: ...


@dataclass(frozen=True)
class Score:
    """A whole number between two ends, after a sentence of reason where one is wanted."""

    low: int = 0
    high: int = 100
    explain: bool = False

    @property
    def request(self) -> str:
        """The sentence that asks for this form."""
        reason = '"reason": "<one sentence>", ' if self.explain else ""
        return f'Reply with JSON alone: {{{reason}"score": <whole number>}}, the number from {self.low} to {self.high}.'

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema, for endpoints that can be held to one."""
        return _schema({"score": {"type": "integer", "minimum": self.low, "maximum": self.high}}, self.explain)

    @property
    def replies(self) -> list[str]:
        """Every reply that follows the form without a reason."""
        return [json.dumps({"score": value}) for value in range(self.low, self.high + 1)]

    def read(self, reply: str) -> float | None:
        """The score in a reply, in JSON or alone; None for anything else and for one out of range."""
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
    """Which of two answers is better: `A`, `B` or `tie`."""

    explain: bool = False

    @property
    def request(self) -> str:
        """The sentence that asks for this form."""
        reason = '"reason": "<one sentence>", ' if self.explain else ""
        forms = [f'{{{reason}"better": "{value}"}}' for value in ("A", "B", "tie")]
        return f"Reply with JSON alone: {forms[0]}, {forms[1]} or {forms[2]}."

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema, for endpoints that can be held to one."""
        return _schema({"better": {"type": "string", "enum": ["A", "B", "tie"]}}, self.explain)

    @property
    def replies(self) -> list[str]:
        """Every reply that follows the form without a reason."""
        return [json.dumps({"better": value}) for value in ("A", "B", "tie")]

    def read(self, reply: str) -> str | None:
        """The choice in a reply; None where there is none."""
        found = _json(reply)
        text = str(found.get("better")) if found is not None else reply
        word = re.sub(r"^answer\s+|[^a-z\s]", "", text.strip().lower()).strip()
        return {"a": "A", "b": "B", "tie": "tie"}.get(word)


class JudgePrompt:
    """A prompt file in Jinja, rendered with texts that stand between marks they cannot contain.

    Every text `name` that is not empty arrives in the template as a block of its own between `<name mark>` and
    `</name mark>`. The mark is a number made from all texts together and lengthened until it occurs in none, so that
    no answer can close its block. `mark`, `request` (how to reply), `low` and `high` (the scale) are there too.
    Raises TemplateError for a template that is wrong or leaves out how to reply.
    """

    def __init__(self, name: str, text: str, verdict: Verdict, fields: tuple[str, ...]) -> None:
        self.name, self.verdict, self.fields = name, verdict, fields
        try:
            self._template = text_environment().from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"judge prompt {name!r}, line {error.lineno}: {error.message}") from error
        if verdict.request not in self.render(dict.fromkeys(fields, "text")):
            raise TemplateError(f"judge prompt {name!r}: {{{{ request }}}} is missing, which says how to reply")

    def render(self, texts: Mapping[str, str]) -> str:
        """The prompt for these texts; a missing one is empty."""
        values = {name: str(texts.get(name) or "") for name in self.fields}
        mark = _mark(list(values.values()))
        blocks = {name: f"<{name} {mark}>\n{text}\n</{name} {mark}>" if text else "" for name, text in values.items()}
        ends = {name: getattr(self.verdict, name) for name in ("low", "high") if hasattr(self.verdict, name)}
        try:
            return self._template.render(mark=mark, request=self.verdict.request, **ends, **blocks).strip()
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            names = ", ".join((*self.fields, "mark", "request", *ends))
            raise TemplateError(f"judge prompt {self.name!r}: {error}; the variables are {names}") from error


def texts_of(row: Mapping[str, Any]) -> dict[str, str]:
    """What a prompt needs of an answered record; system prompt and earlier turns are its `history`."""
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
    """The JSON object in a reply, whatever stands around it."""
    start, end = reply.find("{"), reply.rfind("}")
    try:
        found = json.loads(reply[start : end + 1])
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
