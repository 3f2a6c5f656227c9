"""Conversations as records: ShareGPT's, and the messages of OpenAI and Hugging Face.

Every key of a turn is either kept or refused by name; null and empty values count as absent. A conversation of texts
alone is in the texts of an `Example`; one with tools, calls or thoughts is in its `messages`, in OpenAI's form with
parsed arguments.
"""

import json
import re
import reprlib
from collections.abc import Mapping
from functools import partial
from typing import Any

from instruct_lit.core.data.example import Example, Form, checked_text, extra_fields, listed
from instruct_lit.core.data.records import json_object
from instruct_lit.errors import DataError

ROLES = {
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "function_call": "call", "tool_call": "call",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool", "tool_response": "tool",
    "system": "system", "developer": "system", "prompter": "user",
}  # fmt: skip
_USUAL = "user, human, assistant, gpt, function_call, tool, system"  # all would hide a long path's end and the value
WEIGHTS = ("weight", "train", "loss", "trainable")  # keys of a turn that say how much it is trained on
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")
_CALLS = ("tool_calls", "function_call")
_TOOLS = ("tools", "functions")  # fields with their descriptions
PARTS = (*WEIGHTS, *_THOUGHTS, *_CALLS)  # keys of a turn beside its role and text
_OWN = {"assistant": (*_CALLS, *_THOUGHTS), "tool": ("tool_call_id", "name")}  # further keys of a role's turns
_KEYS = {"messages": ("role", "content"), "conversations": ("from", "value")}  # of a turn's role and text, by field
_EMPTY: tuple[Any, ...] = (None, "", [], {})
_ORDER = "user and assistant must alternate, the user first"
_ENDS = {"reasoning_content": "</think>", "tool_calls": "</tool_call>"}  # where every reader of an answer ends a part


def from_turns(record: Mapping[str, Any], place: str, names: Mapping[str, str], field: str = "messages") -> Example:
    """The example of a record with a list of turns in a field of `_KEYS`.

    Raises: DataError for content that cannot be trained on, and for a conversation that is anything but an optional
        system prompt, the user's turn, and turns of which no two of a user follow each other, the last the assistant's.
    """
    name = names[field]
    given = record.get(name)
    given = _parsed(given, place, name) if isinstance(given, str) else given  # a cell of a table
    if not isinstance(given, list) or not given:
        found = f"no list of turns in {name!r}; found: {listed(record)}"
        raise DataError(f"{place}: {found} (see data.columns and data.format)")
    turns = [_turn(turn, f"{place}, {name}[{number}]", *_KEYS[field]) for number, turn in enumerate(given)]
    if record.get(names["system"]):
        text = checked_text(record[names["system"]], place, names["system"])
        turns.insert(0, ({"role": "system", "content": text}, 1.0))
    tools = [tool for key in _TOOLS for tool in _tools(record.get(key), place)]
    extra = extra_fields(record, (name, names["system"], *_TOOLS), place)
    return conversation([turn for turn, _ in turns], [weight for _, weight in turns], tools, place, extra)


def conversation(
    turns: list[dict[str, Any]], weights: list[float], tools: list[dict[str, Any]], place: str, extra: dict[str, Any]
) -> Example:
    """The example of checked turns: in texts where they say it all, otherwise in messages."""
    system = turns[0]["content"] if turns[0]["role"] == "system" else ""
    said = list(enumerate(turns))[1 if system else 0 :]
    before, pairs, learnt = "nobody", [], []
    user: list[str] = []
    for number, turn in said:
        role = turn["role"]
        if role not in _FOLLOWING[before]:
            raise DataError(f"{place}: {_ORDER}; turn {number + 1 - bool(system)} is the {role}'s")
        before = "call" if turn.get("tool_calls") else role
        if role == "assistant":
            calls = [json.dumps(call["function"], ensure_ascii=False) for call in turn.get("tool_calls", ())]
            pairs.append(("\n".join(user), turn["content"] or "\n".join(calls)))
            learnt.append(weights[number])
            user = []
        elif role == "user":
            user.append(turn["content"])
    if before not in ("assistant", "call"):
        remedy = " (see data.format=preference)" if "chosen" in extra else ""
        raise DataError(f"{place}: {_ORDER}; the last question has no answer{remedy}")
    if not any(learnt):
        raise DataError(f"{place}: every turn has weight 0, so nothing could be learnt")
    is_rich = tools or any(turn["role"] == "tool" or len(turn) > 2 for turn in turns)
    *history, (instruction, output) = pairs
    return Example(
        instruction, output, "", extra, system, tuple(history), tuple(turns) if is_rich else (), tuple(tools),
        tuple(learnt) if set(learnt) != {1.0} else (),
    )  # fmt: skip


def with_thoughts_apart(example: Example, place: str) -> Example:
    """The example with `<think>…</think>` at the start of an answer as that turn's thoughts; empty ones are dropped.

    Raises: DataError for a thought that does not end or ends twice, or behind which nothing follows.
    """
    messages: list[dict[str, Any]] = [dict(message) for message in example.messages]
    if not messages:
        pairs = [*example.history, ("\n\n".join(filter(None, (example.instruction, example.input))), example.output)]
        turns = [(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
        messages = [{"role": r, "content": t} for r, t in [("system", example.system), *turns] if t or r == "user"]
    found = [m for m in messages if m["role"] == "assistant" and m["content"].lstrip().startswith("<think>")]
    if not found:
        return example
    for message in found:
        thoughts, end, text = message["content"].lstrip().removeprefix("<think>").partition("</think>")
        if not end or not (text.strip() or message.get("tool_calls")):
            raise DataError(f"{place}: {message['content'][:40]!r} has no </think> with an answer behind it")
        if "</think>" in text:
            raise DataError(f"{place}: {message['content'][:40]!r} has more than one </think>")
        message["content"] = text.lstrip()
        if thoughts.strip():
            message["reasoning_content"] = "\n".join(filter(None, (message.get("reasoning_content"), thoughts.strip())))
    n_turns = sum(message["role"] == "assistant" for message in messages)
    weights = list(example.weights or (1.0,) * n_turns)
    each = [weights.pop(0) if message["role"] == "assistant" else 1.0 for message in messages]
    return conversation(messages, each, [dict(tool) for tool in example.tools], place, dict(example.extra))


_FOLLOWING = {  # roles that may follow
    "nobody": ("user",), "user": ("assistant",), "assistant": ("user",), "call": ("tool", "user"),
    "tool": ("tool", "assistant", "user"),
}  # fmt: skip


def _turn(turn: Any, where: str, role_key: str, text_key: str) -> tuple[dict[str, Any], float]:
    """A turn in OpenAI's form, and its weight."""
    if not isinstance(turn, dict):
        found = reprlib.repr(turn)
        raise DataError(f"{where}: a turn must be a mapping with {role_key!r} and {text_key!r}, found {found}")
    role_key, text_key = next((keys for keys in _KEYS.values() if turn.get(keys[0]) is not None), (role_key, text_key))
    role = ROLES.get(str(turn.get(role_key)).lower())
    if role is None:
        found = reprlib.repr(turn.get(role_key))
        raise DataError(f"{where}: {role_key!r} is {found}; allowed are {_USUAL} and other names of theirs")
    _refuse_others(turn, (role_key, text_key, *WEIGHTS, *_OWN.get(role, ())), where, "a turn")
    content = turn.get(text_key)
    if isinstance(content, list):
        content = "".join(_part(part, f"{where}, {text_key}[{n}]") for n, part in enumerate(content))
    message: dict[str, Any] = {"role": role, "content": content}
    if role == "call":
        message = {"role": "assistant", "content": "", "tool_calls": _calls(content, where)}
    if role == "assistant" and (thoughts := _one_of(turn, _THOUGHTS, where)) is not None:
        message["reasoning_content"] = checked_text(thoughts, where, "reasoning_content")
    if role == "assistant" and (calls := _one_of(turn, _CALLS, where)) is not None:
        message["tool_calls"] = _calls(calls, where)
    if role == "tool":
        message |= {key: turn[key] for key in _OWN[role] if turn.get(key)}
        if isinstance(content, Mapping):
            message["content"] = json.dumps(_without_nulls(content), ensure_ascii=False)
    for key, end in _ENDS.items():
        if key in message and end in json.dumps(message[key], ensure_ascii=False):
            raise DataError(f"{where}: {key!r} contains {end}, where it would end for a reader; write it otherwise")
    may_be_empty = role == "tool" or "tool_calls" in message
    content = "" if may_be_empty and message["content"] is None else message["content"]
    message["content"] = checked_text(content, where, text_key, may_be_empty)
    return message, _weight(turn, message["role"], where)


def _weight(turn: Mapping[str, Any], role: str, where: str) -> float:
    value = _one_of(turn, WEIGHTS, where)
    if value and role != "assistant":
        found = f"the {role}'s turn has the weight {reprlib.repr(value)}, and only the assistant's turns are learnt"
        raise DataError(f"{where}: {found}; remove it (data.prompt_weight weighs all prompts)")
    if value is None:
        return 1.0
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        found = f"the weight is {reprlib.repr(value)}; true, false or a number from 0 to 1 is allowed"
        raise DataError(f"{where}: {found} ({', '.join(WEIGHTS)})")
    return float(value)


def _one_of(turn: Mapping[str, Any], keys: tuple[str, ...], where: str) -> Any:
    """The value of the keys that mean the same; None where none is given."""
    given = {key: turn[key] for key in keys if turn.get(key) not in _EMPTY}
    first = next(iter(given.values()), None)
    if any(value != first for value in given.values()):
        raise DataError(f"{where}: {listed(map(repr, given))} contradict each other; give one of them")
    return first


def _calls(given: Any, where: str) -> list[dict[str, Any]]:
    """Calls of tools in OpenAI's form, their arguments parsed."""
    calls = _parsed(given, where, "tool_calls")
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function") or call if isinstance(call, Mapping) else {}
        name = function.get("name")
        arguments = function.get("arguments", function.get("parameters"))
        arguments = _parsed(arguments or {}, where, "arguments")
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            needed = "a 'name' and a mapping of 'arguments'"
            raise DataError(f"{where}: a call must have {needed}, found {reprlib.repr(call)}")
        _refuse_others(function, ("name", "arguments", "parameters", "id", "type"), where, "a call")
        _refuse_others(call, ("function", "name", "arguments", "parameters", "id", "type", "index"), where, "a call")
        own = {"id": call["id"]} if call.get("id") else {}
        found.append({**own, "type": "function", "function": {"name": name, "arguments": arguments}})
    return found


def _tools(given: Any, place: str) -> list[dict[str, Any]]:
    """Descriptions of tools in OpenAI's form."""
    tools = _parsed(given or [], place, "tools")
    found = []
    for tool in tools if isinstance(tools, list) else [tools]:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(f"{place}: a tool must be a mapping with a 'name', found {reprlib.repr(tool)}")
        found.append(dict(tool) if "function" in tool else {"type": "function", "function": dict(function)})
    return found


def _parsed(given: Any, where: str, name: str) -> Any:
    """A JSON value given as text or as it is; in the latter, null values are those of absent keys (Arrow's)."""
    if not isinstance(given, str):
        return _without_nulls(given)
    try:
        return json.loads(given, object_pairs_hook=json_object)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {name!r} is invalid JSON ({error}), found {reprlib.repr(given)}") from error


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _part(part: Any, where: str) -> str:
    """The text of one of OpenAI's content parts."""
    if not isinstance(part, dict) or part.get("type") != "text":
        kind = reprlib.repr(part.get("type")) if isinstance(part, dict) else type(part).__name__
        raise DataError(f"{where}: a part of type {kind}; only {{'type': 'text', 'text': …}} can be trained on")
    _refuse_others(part, ("type", "text"), where, "a part")
    return checked_text(part.get("text"), where, "text", may_be_empty=True)


def _refuse_others(given: Mapping[str, Any], allowed: tuple[str, ...], where: str, what: str) -> None:
    """Raise DataError when keys beside the allowed ones have a value: nothing in a conversation is ignored."""
    others = [key for key, value in given.items() if key not in allowed and value not in _EMPTY]
    if others:
        found, remedy = listed(map(repr, others)), f"{what} may have {listed(map(repr, allowed))}"
        raise DataError(f"{where}: {found} cannot be trained on; {remedy}")


def _has_turns(record: Mapping[str, Any], names: Mapping[str, str], field: str) -> bool:
    given = record.get(names[field])
    return isinstance(given, list) or (isinstance(given, str) and re.match(r"\s*\[\s*{", given) is not None)


FORMS = {
    name: Form(partial(_has_turns, field=field), partial(from_turns, field=field))
    for name, field in (("messages", "messages"), ("sharegpt", "conversations"))
}
