"""The prompts of a judge and the parsing of its replies: prompt files, unforgeable delimiters, JSON verdicts."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jinja2

from instruct_lit.core.jinja_environments import compile_text, failure
from instruct_lit.errors import TemplateError
from instruct_lit.evaluation.answer_parts import final_text

_LABEL = r"(?:(?:the|my|final|overall|total|better|best|preferred)\W+)*"
# A bare number, perhaps with a label and the end of the scale; a number within a sentence may mean anything else.
_PLAIN = re.compile(
    rf"[^\w{{]*?(?:{_LABEL}(?:score|rating|grade)(?:\W+is\b)?\W*?)?(-?\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*(\d+))?\W*",
    re.I,
)
_BETTER = re.compile(
    rf"\W*(?:{_LABEL}(?:answer|response|assistant|model|option|winner|verdict|choice)[\W_]+(?:is\W+)?|it\W+i?s\W+a\W+)*"
    r"(a|b|tie)(?:\W+(?:wins|is\W+(?:the\W+)?(?:better|best)(?:\W+(?:answer|response|one))?))?\W*",
    re.I,
)
_MARKED = re.compile(r"\[\[\s*([^\[\]]+?)\s*\]\]|\[RESULT\]\s*(\S.*?)\s*$", re.I)  # of MT-Bench and Prometheus


class Verdict(ABC):
    """The form of a reply: a JSON object with one value, and before it one sentence of reason with `explain`."""

    key: ClassVar[str]
    explain: bool

    @property
    @abstractmethod
    def request(self) -> str:
        """The sentence of the prompt that asks for this form."""

    @property
    @abstractmethod
    def value_schema(self) -> dict[str, Any]:
        """The JSON schema of the value: an `enum`, or an integer from `minimum` to `maximum`."""

    @abstractmethod
    def read(self, reply: str) -> Any:
        """The value in a reply, not in thoughts before it; None where there is none."""

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema for constrained decoding."""
        properties = {**({"reason": {"type": "string"}} if self.explain else {}), self.key: self.value_schema}
        return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}

    @property
    def replies(self) -> list[str]:
        """Every reply in this form, without a reason."""
        allowed = self.value_schema
        values = allowed.get("enum") or range(allowed["minimum"], allowed["maximum"] + 1)
        return [json.dumps({self.key: value}) for value in values]

    def _form(self, value: str) -> str:
        reason = '"reason": "<one sentence>", ' if self.explain else ""
        return f'{{{reason}"{self.key}": {value}}}'


@dataclass(frozen=True)
class Score(Verdict):
    """An integer from `low` to `high`."""

    low: int = 0
    high: int = 100
    explain: bool = False
    key = "score"

    @property
    def request(self) -> str:
        return f"Reply with JSON alone: {self._form('<whole number>')}, the number from {self.low} to {self.high}."

    @property
    def value_schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}

    def read(self, reply: str) -> float | None:
        """The score in a reply, a bare number or one in JSON; None for anything else and for a score out of range."""
        plain = _PLAIN.fullmatch(_stated(final_text(reply), self.key))
        if plain is None or float(plain[2] or self.high) != self.high:
            return None
        return float(plain[1]) if self.low <= float(plain[1]) <= self.high else None


@dataclass(frozen=True)
class Choice(Verdict):
    """The better of two responses: `A`, `B` or `tie`."""

    explain: bool = False
    key = "better"
    value_schema = {"type": "string", "enum": ["A", "B", "tie"]}  # noqa: RUF012

    @property
    def request(self) -> str:
        a, b, tie = map(self._form, ('"A"', '"B"', '"tie"'))
        return f"Reply with JSON alone: {a}, {b} or {tie}."

    def read(self, reply: str) -> str | None:
        stated = _BETTER.fullmatch(_stated(final_text(reply).replace("[[C]]", "[[tie]]"), self.key))
        return {"a": "A", "b": "B", "tie": "tie"}[stated[1].lower()] if stated else None


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
    return next(mark[:n] for n in range(6, len(mark)) if not any(mark[:n] in text for text in texts))


def _stated(reply: str, key: str) -> str:
    """What a reply gives as its value: that of a key of its JSON, or the only marked text in it, or all of it."""
    start, end = reply.find("{"), reply.rfind("}")
    try:
        given = json.loads(reply[start : end + 1])
        found = {str(given[key])} if key in given else set(_values(given, key))
    except (ValueError, RecursionError):
        found = {" ".join(groups).strip() for groups in _MARKED.findall(reply)} or {reply}
    return found.pop() if len(found) == 1 else ""


def _values(node: Any, key: str) -> Iterator[str]:
    """The values of a key in nested objects, whatever its case."""
    for name, value in node.items() if isinstance(node, dict) else ():
        yield from [str(value)] if name.strip().lower() == key else _values(value, key)
