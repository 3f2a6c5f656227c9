"""From a record to an example: Alpaca's form, ShareGPT's and OpenAI's, recognised or named (`data.format`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from instruct_lit.core.data.example import Example, Turn
from instruct_lit.core.data.records import checked_text
from instruct_lit.errors import DataError

Format = Literal["auto", "alpaca", "sharegpt", "messages"]
FIELDS = ("instruction", "input", "output", "system", "history", "conversations", "messages")
_ROLES = {
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "system": "system", "developer": "system",
}  # fmt: skip


def to_example(record: Any, place: str, columns: Mapping[str, str] | None = None, format: Format = "auto") -> Example:
    """Check a record and turn it into an Example; `columns` maps the names of `FIELDS` to the record's own.

    `alpaca` has `instruction`, `output`, and may have `input`, `system` and `history` (earlier turns as pairs);
    `sharegpt` has a list `conversations` of `from` and `value`, `messages` a list of `role` and `content`. `auto` takes
    the form whose list is there, and Alpaca's where there is none. Other fields go to `extra`.

    Raises DataError naming the place for a missing, empty or non-text field, and for a conversation that is not made of
    one optional system prompt and of questions that are each answered.
    """
    if not isinstance(record, dict):
        raise DataError(f"{place}: a record is a mapping of fields, found {type(record).__name__}")
    names = {field: (columns or {}).get(field, field) for field in FIELDS}
    found = recognised(record, names) if format == "auto" else format
    if found == "alpaca":
        return _from_alpaca(record, place, names)
    field = "conversations" if found == "sharegpt" else "messages"
    said = _said(record, place, names[field], *(("from", "value") if found == "sharegpt" else ("role", "content")))
    if record.get(names["system"]):
        said.insert(0, ("system", checked_text(record[names["system"]], place, names["system"])))
    extra = {str(key): value for key, value in record.items() if key not in (names[field], names["system"])}
    return _from_conversation(said, place, extra)


def recognised(record: Mapping[str, Any], names: Mapping[str, str]) -> Format:
    """The form of a record by the list that it has."""
    for field, format in (("messages", "messages"), ("conversations", "sharegpt")):
        if isinstance(record.get(names[field]), list):
            return format  # type: ignore[return-value]
    return "alpaca"


def _from_alpaca(record: Mapping[str, Any], place: str, names: Mapping[str, str]) -> Example:
    texts = {}
    for field in ("instruction", "input", "output", "system"):
        name = names[field]
        value = record.get(name)
        optional = field in ("input", "system")
        if value is None and not optional:
            there = ", ".join(map(str, record)) or "none"
            raise DataError(f"{place}: no field {name!r} for the {field}; found: {there} (see data.columns)")
        texts[field] = checked_text("" if value is None else value, place, name, optional)
    used = {names[field] for field in (*texts, "history")}
    extra = {str(key): value for key, value in record.items() if key not in used}
    pairs = record.get(names["history"]) or []
    history = tuple(_pair(pair, place, names["history"]) for pair in (pairs if isinstance(pairs, list) else [pairs]))
    return Example(texts["instruction"], texts["output"], texts["input"], extra, texts["system"], history)


def _pair(pair: Any, place: str, name: str) -> Turn:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise DataError(f"{place}: {name!r} is a list of pairs [question, answer], found {pair!r:.60}")
    question, answer = (checked_text(text, place, name) for text in pair)
    return question, answer


def _said(record: Mapping[str, Any], place: str, name: str, role_key: str, text_key: str) -> list[tuple[str, str]]:
    """Who said what, roles in our names."""
    turns = record.get(name)
    if not isinstance(turns, list) or not turns:
        there = ", ".join(map(str, record)) or "none"
        raise DataError(f"{place}: no list of turns in {name!r}; found: {there} (see data.columns and data.format)")
    said = []
    for number, turn in enumerate(turns):
        where = f"{place}, {name}[{number}]"
        if not isinstance(turn, dict):
            raise DataError(f"{where}: a turn is a mapping with {role_key!r} and {text_key!r}, found {turn!r:.60}")
        role = _ROLES.get(str(turn.get(role_key)).lower())
        if role is None:
            raise DataError(f"{where}: {role_key!r} is {turn.get(role_key)!r}; allowed are {', '.join(_ROLES)}")
        if turn.get("weight", 1) != 1:
            raise DataError(f"{where}: 'weight' is {turn['weight']!r}; single turns cannot be left out of the loss")
        said.append((role, checked_text(_joined(turn.get(text_key)), where, text_key)))
    return said


def _joined(content: Any) -> Any:
    """OpenAI's content may be a list of parts; the text of those that are text."""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    return content


def _from_conversation(said: list[tuple[str, str]], place: str, extra: Mapping[str, Any]) -> Example:
    system = ""
    if said[0][0] == "system":
        system, said = said[0][1], said[1:]
    wrong = next((n for n, (role, _) in enumerate(said) if role != ("user", "assistant")[n % 2]), None)
    if wrong is not None or len(said) % 2 or not said:
        what = "the last question has no answer" if wrong is None else f"turn {wrong + 1} is the {said[wrong][0]}'s"
        raise DataError(f"{place}: user and assistant must speak in turn, the user first; {what}")
    texts = [text for _, text in said]
    *history, (instruction, output) = zip(texts[::2], texts[1::2], strict=True)
    return Example(instruction, output, "", extra, system, tuple(history))
