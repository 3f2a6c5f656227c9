"""Conversations as records: ShareGPT's, and the messages of OpenAI and Hugging Face.

Every key of a turn is either used or refused by name; null and empty values count as absent.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from functools import partial
from typing import Any

from instruct_lit.core.data.example import Example, Form, checked_text, extra_fields, listed
from instruct_lit.errors import DataError

_ROLES = {
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "system": "system", "developer": "system",
}  # fmt: skip
_TRAINED = ("weight", "train")  # keys of a turn that may say that it is trained on, which it is


def from_turns(
    record: Mapping[str, Any], place: str, names: Mapping[str, str], turns_field: str, role_key: str, text_key: str
) -> Example:
    """The example of a record with a list of turns.

    Raises: DataError for a conversation that is anything but an optional system prompt and user turns that are each
        answered, and for content that cannot be trained on.
    """
    name = names[turns_field]
    given = record.get(name)
    if not isinstance(given, list) or not given:
        raise DataError(
            f"{place}: no list of turns in {name!r}; found: {listed(record)} (see data.columns and data.format)"
        )
    turns = [_turn(turn, f"{place}, {name}[{number}]", role_key, text_key) for number, turn in enumerate(given)]
    extra = extra_fields(record, (name, names["system"]))
    if record.get(names["system"]):
        turns.insert(0, ("system", checked_text(record[names["system"]], place, names["system"])))
    system = turns.pop(0)[1] if turns[0][0] == "system" else ""
    wrong = next((n for n, (role, _) in enumerate(turns) if role != ("user", "assistant")[n % 2]), None)
    if wrong is not None or len(turns) % 2 or not turns:
        what = "the last question has no answer" if wrong is None else f"turn {wrong + 1} is the {turns[wrong][0]}'s"
        raise DataError(f"{place}: user and assistant must alternate, the user first; {what}")
    texts = [text for _, text in turns]
    *history, (instruction, output) = zip(texts[::2], texts[1::2], strict=True)
    return Example(instruction, output, "", extra, system, tuple(history))


def _turn(turn: Any, where: str, role_key: str, text_key: str) -> tuple[str, str]:
    """Role (user, assistant or system) and text of a turn."""
    if not isinstance(turn, dict):
        found = reprlib.repr(turn)
        raise DataError(f"{where}: a turn must be a mapping with {role_key!r} and {text_key!r}, found {found}")
    role = _ROLES.get(str(turn.get(role_key)).lower())
    if role is None:
        found = reprlib.repr(turn.get(role_key))
        raise DataError(f"{where}: {role_key!r} is {found}; allowed are {', '.join(_ROLES)}")
    for key in _TRAINED:
        if turn.get(key, 1) not in (1, None):
            found = reprlib.repr(turn[key])
            raise DataError(f"{where}: {key!r} is {found}; single turns cannot be excluded from the loss")
    _refuse_others(turn, (role_key, text_key, *_TRAINED), where, "a turn")
    content = turn.get(text_key)
    if isinstance(content, list):
        content = "".join(_part(part, f"{where}, {text_key}[{n}]") for n, part in enumerate(content))
    return role, checked_text(content, where, text_key)


def _part(part: Any, where: str) -> str:
    """The text of one of OpenAI's content parts."""
    if not isinstance(part, dict) or part.get("type") != "text":
        kind = reprlib.repr(part.get("type")) if isinstance(part, dict) else type(part).__name__
        raise DataError(f"{where}: a part of type {kind}; only {{'type': 'text', 'text': …}} can be trained on")
    _refuse_others(part, ("type", "text"), where, "a part")
    return checked_text(part.get("text"), where, "text", may_be_empty=True)


def _refuse_others(given: Mapping[str, Any], allowed: tuple[str, ...], where: str, what: str) -> None:
    """Raise DataError when keys beside the allowed ones have a value: nothing in a conversation is ignored."""
    others = [key for key, value in given.items() if key not in allowed and value not in (None, "", [], {})]
    if others:
        raise DataError(
            f"{where}: {listed(map(repr, others))} cannot be trained on; {what} may have {listed(map(repr, allowed))}"
        )


FORMS = {
    "messages": Form("messages", partial(from_turns, turns_field="messages", role_key="role", text_key="content")),
    "sharegpt": Form(
        "conversations", partial(from_turns, turns_field="conversations", role_key="from", text_key="value")
    ),
}
