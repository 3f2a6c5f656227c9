"""One instruction with its target response, and how a record becomes one."""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from instruct_lit.errors import DataError

Turn = tuple[str, str]  # of a conversation: what the user and what the assistant wrote
Format = str  # auto, alpaca, or a name in `FORMS`
FIELDS = ("instruction", "input", "output", "system", "history", "conversations", "messages")
CONVERSATION = ("messages", "tools", "weights")  # fields of an Example that its texts do not contain
RESERVED = ("extra", "id", "response", "finish_reason", *FIELDS, *CONVERSATION)  # not names of extra fields in a record
WHOLE = "conversation"  # extra field of a turn that is trained on by itself: what the user wrote in its conversation
BROKEN = re.compile("[\ufffd\ud800-\udfff]")  # what a wrong encoding leaves, and lone surrogates, which none represents
MAX_CHARACTERS = 4_000_000  # of a text: more than any context holds, and encoded within seconds


@dataclass(frozen=True, slots=True)
class Example:
    """An instruction, an optional input it applies to, and the target output.

    In a conversation these are its last turn; `history` holds the earlier turns and `system` the system prompt. `extra`
    holds the record's other fields (a category, say), which are copied to responses and reports. A conversation with
    tools, calls or thoughts is whole in `messages`, in OpenAI's form. `weights` are those of its turns, if not all 1.
    """

    instruction: str
    output: str
    input: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    history: tuple[Turn, ...] = ()
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    weights: tuple[float, ...] = ()

    def as_record(self) -> dict[str, Any]:
        """The example as a JSON-serialisable record in Alpaca's form, extra fields first; `from_record` reads it.

        Extra fields with a name in `RESERVED` are kept apart, in the field `extra`.
        """
        shown = {key: value for key, value in self.extra.items() if key not in RESERVED}
        hidden = {key: value for key, value in self.extra.items() if key in RESERVED}
        optional = {"extra": hidden, "system": self.system, "history": [list(turn) for turn in self.history]}
        optional |= {name: list(getattr(self, name)) for name in CONVERSATION}
        last = {"instruction": self.instruction, "input": self.input, "output": self.output}
        return {**shown, **{key: value for key, value in optional.items() if value}, **last}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Example:
        """The example that `as_record` wrote."""
        texts: dict[str, Any] = {k: record[k] for k in ("instruction", "input", "output", "system") if k in record}
        history = tuple((user, assistant) for user, assistant in record.get("history", ()))
        extra = {key: value for key, value in record.items() if key not in (*texts, "history", "extra", *CONVERSATION)}
        rest: dict[str, Any] = {name: tuple(record.get(name, ())) for name in CONVERSATION}
        return cls(**texts, history=history, extra=extra | record.get("extra", {}), **rest)

    def first_turns(self, n_turns: int) -> Example:
        """The conversation truncated after `n_turns` turns."""
        if n_turns > len(self.history):
            return self
        *history, (instruction, output) = self.history[:n_turns]
        ends = [n for n, message in enumerate(self.messages, start=1) if message["role"] == "assistant"]
        messages = self.messages[: ends[n_turns - 1]] if ends else ()
        last = replace(self, instruction=instruction, input="", output=output)
        return replace(last, history=tuple(history), messages=messages, weights=self.weights[:n_turns])

    @property
    def user_text(self) -> str:
        """What the user wrote, all turns together."""
        return "\n".join([*(user for user, _ in self.history), self.instruction, self.input]).strip()

    @property
    def digest(self) -> bytes:
        """A hash that examples share exactly when all their texts and weights are equal."""
        texts = [self.instruction, self.input, self.output, self.system]
        texts += [text for turn in self.history for text in turn]
        if self.messages:
            texts.append(json.dumps([self.messages, self.tools], default=str))
        texts += map(str, self.weights)
        content = "\x00".join(texts).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(content, digest_size=16).digest()


@dataclass(frozen=True)
class Form:
    """A form of records: whether (record, field names) has it, and a reader of (record, place, field names)."""

    recognises: Callable[[Mapping[str, Any], Mapping[str, str]], bool]
    read: Callable[[Mapping[str, Any], str, Mapping[str, str]], Example]


FORMS: dict[str, Form] = {}  # beside Alpaca's; `datasets` adds conversations
# Checks of extra fields by name, called with value, place, record and format; `datasets` and `evaluation` add some.
EXTRA_FIELDS: dict[str, Callable[[Any, str, Mapping[str, Any], Format], None]] = {}


def to_example(record: Any, place: str, columns: Mapping[str, str] | None = None, format: Format = "auto") -> Example:
    """Check a record and turn it into an Example.

    `alpaca` has `instruction`, `output`, and may have `input`, `system` and `history` (earlier turns as pairs). `auto`
    is the form in `FORMS` that the record has, or else `alpaca`; a list is that of `messages`. Other fields but those
    with null go to `extra`.

    Args:
        place: file and number of the record, for messages.
        columns: the record's own names of `FIELDS`; a field that is named there is not read under its own name too.

    Raises: DataError for a missing, empty or non-text field, and for what cannot be trained on.
    """
    if isinstance(record, list) and record and all(isinstance(turn, dict) for turn in record):
        turns = "conversations" if "from" in record[0] else "messages"
        record = {(columns or {}).get(turns, turns): record}
    if not isinstance(record, dict):
        raise DataError(f"{place}: a record must be a mapping of fields, found {type(record).__name__}")
    if format not in (formats := ("auto", "alpaca", *FORMS)):
        raise DataError(f"{place}: data.format={format}; allowed are {', '.join(formats)}")
    renamed = columns or {}
    names = {key: renamed.get(key, "" if key in renamed.values() else key) for key in FIELDS}
    for name, check in EXTRA_FIELDS.items():
        if record.get(name) is not None and name not in renamed.values():
            check(record[name], place, record, format)
    for name, form in FORMS.items():
        if name == format or (format == "auto" and form.recognises(record, names)):
            return form.read(record, place, names)
    return _from_alpaca(record, place, names)


def checked_text(value: Any, place: str, name: str, may_be_empty: bool = False) -> str:
    """The value of a text field.

    Raises: DataError, naming the place, for another type, an empty or a huge text, and broken characters.
    """
    if not isinstance(value, str):
        raise DataError(f"{place}: {name!r} must be text, found {type(value).__name__} {reprlib.repr(value)}")
    if not may_be_empty and not value.strip():
        raise DataError(f"{place}: {name!r} is empty")
    if len(value) > MAX_CHARACTERS:
        raise DataError(f"{place}: {name!r} has {len(value):,} characters; at most {MAX_CHARACTERS:,} are allowed")
    if not value.isascii() and BROKEN.search(value):
        raise DataError(f"{place}: {name!r} has broken characters (the text was once decoded with the wrong encoding)")
    return value


def listed(names: Iterable[Any]) -> str:
    """The first eight names, for a message."""
    shown = [str(name)[:40] for name in names]
    return (", ".join(shown[:8]) or "none") + (f", … and {len(shown) - 8} more" if shown[8:] else "")


def extra_fields(record: Mapping[str, Any], used: Collection[str], place: str) -> dict[str, Any]:
    """The fields of a record that are not used and not null; JSON has null for NaN. Raises: DataError without UTF-8."""
    extra = {str(key): value for key, value in record.items() if key not in used and value is not None}
    try:
        text = json.dumps(extra, ensure_ascii=False, default=str)
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: a field beside the texts has broken characters; repair or remove it") from error
    return json.loads(text, parse_constant=lambda _: None) if "NaN" in text or "Infinity" in text else extra


def _from_alpaca(record: Mapping[str, Any], place: str, names: Mapping[str, str]) -> Example:
    texts: dict[str, Any] = {}
    for key in ("instruction", "input", "output", "system"):
        value, may_be_empty = record.get(names[key]), key in ("input", "system")
        if value is None and not may_be_empty:
            why = ", plain text without instruction and answer" if list(record) == ["text"] else ""
            see = "data.format=preference" if "chosen" in record and "preference" in FORMS else "data.columns"
            found = f"{listed(record)}{why} (see {see})"
            raise DataError(f"{place}: no field {names[key] or key!r} for the {key}; found: {found}")
        texts[key] = checked_text("" if value is None else value, place, names[key], may_be_empty)
    turns, name = [], names["history"]
    history = record.get(name) or []
    for pair in history if isinstance(history, list) else [history]:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            remedy = "; or give the whole conversation as 'messages'" if isinstance(pair, dict) else ""
            raise DataError(f"{place}: {name!r} must be a list of pairs [question, answer], found {pair!r:.80}{remedy}")
        turns.append((checked_text(pair[0], place, name), checked_text(pair[1], place, name)))
    extra = extra_fields(record, [names[key] for key in (*texts, "history")], place)
    return Example(**texts, extra=extra, history=tuple(turns))
