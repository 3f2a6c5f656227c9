"""One instruction with its target response, and how a record becomes one.

Three forms of a record are read (`data.format`): Alpaca's, ShareGPT's, and the messages of OpenAI.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from instruct_lit.errors import DataError

Turn = tuple[str, str]  # of a conversation: what the user and what the assistant wrote
Format = Literal["auto", "alpaca", "sharegpt", "messages"]
FIELDS = ("instruction", "input", "output", "system", "history", "conversations", "messages")
_ROLES = {
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "system": "system", "developer": "system",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Example:
    """An instruction, an optional input it applies to, and the target output.

    In a conversation these are its last turn; `history` holds the earlier turns and `system` the system prompt. `extra`
    holds the record's other fields (a category, say), which are copied to responses and reports.
    """

    instruction: str
    output: str
    input: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    history: tuple[Turn, ...] = ()

    def as_record(self) -> dict[str, Any]:
        """The example as a JSON-serialisable record in Alpaca's form, extra fields first; `from_record` reads it."""
        conversation = {"system": self.system, "history": [list(turn) for turn in self.history]}
        last = {"instruction": self.instruction, "input": self.input, "output": self.output}
        return {**self.extra, **{key: value for key, value in conversation.items() if value}, **last}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Example:
        """The example that `as_record` wrote."""
        extra = dict(record)
        instruction, given, output = (extra.pop(key) for key in ("instruction", "input", "output"))
        history = tuple((user, assistant) for user, assistant in extra.pop("history", ()))
        return cls(instruction, output, given, extra, extra.pop("system", ""), history)

    def first_turns(self, n_turns: int) -> Example:
        """The conversation truncated after `n_turns` turns."""
        if n_turns > len(self.history):
            return self
        instruction, output = self.history[n_turns - 1]
        return Example(instruction, output, "", self.extra, self.system, self.history[: n_turns - 1])

    @property
    def user_text(self) -> str:
        """What the user wrote, all turns together."""
        return "\n".join([*(user for user, _ in self.history), self.instruction, self.input]).strip()

    @property
    def digest(self) -> bytes:
        """A hash that examples share exactly when all their texts are equal."""
        earlier = (text for turn in self.history for text in turn)
        text = "\x00".join((self.instruction, self.input, self.output, self.system, *earlier))
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation; of a text without any, its characters."""
    return re.findall(r"\w+", text.lower()) or list(text.strip())


def to_example(record: Any, place: str, columns: Mapping[str, str] | None = None, format: Format = "auto") -> Example:
    """Check a record and turn it into an Example.

    `alpaca` has `instruction`, `output`, and may have `input`, `system` and `history` (earlier turns as pairs);
    `sharegpt` has a list `conversations` of `from` and `value`, `messages` a list of `role` and `content`. `auto` is
    the form whose list the record has, or else Alpaca's. Other fields are kept in `extra`.

    Args:
        place: file and number of the record, for messages.
        columns: the record's own names of `FIELDS`.

    Raises: DataError for a missing, empty or non-text field, and for a conversation that is anything but an optional
        system prompt and user turns that are each answered.
    """
    if not isinstance(record, dict):
        raise DataError(f"{place}: a record must be a mapping of fields, found {type(record).__name__}")
    names = {key: (columns or {}).get(key, key) for key in FIELDS}
    if format == "auto":
        if isinstance(record.get(names["messages"]), list):
            format = "messages"
        else:
            format = "sharegpt" if isinstance(record.get(names["conversations"]), list) else "alpaca"
    if format == "alpaca":
        return _from_alpaca(record, place, names)
    turns_name = names["conversations" if format == "sharegpt" else "messages"]
    turns = _turns(record, place, turns_name, *(("from", "value") if format == "sharegpt" else ("role", "content")))
    if record.get(names["system"]):
        turns.insert(0, ("system", checked_text(record[names["system"]], place, names["system"])))
    extra = {str(key): value for key, value in record.items() if key not in (turns_name, names["system"])}
    return _from_conversation(turns, place, extra)


def checked_text(value: Any, place: str, name: str, may_be_empty: bool = False) -> str:
    """The value of a text field.

    Raises: DataError, naming the place, for another type, an empty text, and broken characters.
    """
    if not isinstance(value, str):
        raise DataError(f"{place}: {name!r} must be text, found {type(value).__name__} {value!r:.60}")
    if not may_be_empty and not value.strip():
        raise DataError(f"{place}: {name!r} is empty")
    if not value.isascii() and ("\ufffd" in value or not is_encodable(value)):
        raise DataError(f"{place}: {name!r} has broken characters (the text was once decoded with the wrong encoding)")
    return value


def is_encodable(text: str) -> bool:
    """Whether a text is free of lone surrogates, which no encoding can represent."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _from_alpaca(record: Mapping[str, Any], place: str, names: Mapping[str, str]) -> Example:
    texts = {}
    for key in ("instruction", "input", "output", "system"):
        name = names[key]
        value = record.get(name)
        optional = key in ("input", "system")
        if value is None and not optional:
            found = ", ".join(map(str, record)) or "none"
            raise DataError(f"{place}: no field {name!r} for the {key}; found: {found} (see data.columns)")
        texts[key] = checked_text("" if value is None else value, place, name, optional)
    used = {names[key] for key in (*texts, "history")}
    extra = {str(key): value for key, value in record.items() if key not in used}
    pairs = record.get(names["history"]) or []
    history = tuple(_pair(pair, place, names["history"]) for pair in (pairs if isinstance(pairs, list) else [pairs]))
    return Example(texts["instruction"], texts["output"], texts["input"], extra, texts["system"], history)


def _pair(pair: Any, place: str, name: str) -> Turn:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise DataError(f"{place}: {name!r} must be a list of pairs [question, answer], found {pair!r:.60}")
    question, answer = (checked_text(text, place, name) for text in pair)
    return question, answer


def _turns(record: Mapping[str, Any], place: str, name: str, role_key: str, text_key: str) -> list[tuple[str, str]]:
    """Role and text of every turn, with roles named user, assistant and system."""
    turns = record.get(name)
    if not isinstance(turns, list) or not turns:
        found = ", ".join(map(str, record)) or "none"
        raise DataError(f"{place}: no list of turns in {name!r}; found: {found} (see data.columns and data.format)")
    checked = []
    for number, turn in enumerate(turns):
        where = f"{place}, {name}[{number}]"
        if not isinstance(turn, dict):
            raise DataError(f"{where}: a turn must be a mapping with {role_key!r} and {text_key!r}, found {turn!r:.60}")
        role = _ROLES.get(str(turn.get(role_key)).lower())
        if role is None:
            raise DataError(f"{where}: {role_key!r} is {turn.get(role_key)!r}; allowed are {', '.join(_ROLES)}")
        if turn.get("weight", 1) != 1:
            raise DataError(f"{where}: 'weight' is {turn['weight']!r}; single turns cannot be excluded from the loss")
        content = turn.get(text_key)
        if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
            content = "".join(str(part.get("text", "")) for part in content)  # OpenAI's content parts
        checked.append((role, checked_text(content, where, text_key)))
    return checked


def _from_conversation(turns: list[tuple[str, str]], place: str, extra: Mapping[str, Any]) -> Example:
    system = ""
    if turns[0][0] == "system":
        system, turns = turns[0][1], turns[1:]
    wrong = next((n for n, (role, _) in enumerate(turns) if role != ("user", "assistant")[n % 2]), None)
    if wrong is not None or len(turns) % 2 or not turns:
        what = "the last question has no answer" if wrong is None else f"turn {wrong + 1} is the {turns[wrong][0]}'s"
        raise DataError(f"{place}: user and assistant must alternate, the user first; {what}")
    texts = [text for _, text in turns]
    *history, (instruction, output) = zip(texts[::2], texts[1::2], strict=True)
    return Example(instruction, output, "", extra, system, tuple(history))
