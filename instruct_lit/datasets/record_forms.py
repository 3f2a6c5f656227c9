"""Forms of records beside Alpaca's and lists of turns: each is rewritten as messages, which `conversations` checks.

A form is recognised by its fields unless `recognised` is False; such a form is read by name only (`data.format=`).
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from instruct_lit.core.data.example import WHOLE, Example, Form, listed
from instruct_lit.datasets.conversations import PARTS, ROLES, WEIGHTS, from_turns
from instruct_lit.errors import DataError

Messages = list[dict[str, Any]]
_GLAIVE = re.compile(r"(?:^|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):", re.I)
_GLAIVE_ROLES = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
_PAIRS = (
    ("user", "assistant"), ("human", "assistant"), ("question", "answer"), ("instruction", "output"),
    ("prompt", "response"),
)  # fmt: skip
_TURNS = ("messages", "conversations")
_PROMPTS = ("prompt", *_TURNS, "question", "instruction", "input")
_CALL = re.compile(r"<functioncall>\s*(.*)", re.S)


def _refuse_media(value: Any, place: str, *_: Any) -> None:
    """Raise DataError for a record with images, audio or video in a field of its own."""
    if value:
        raise DataError(f"{place}: has images, audio or video, which cannot be trained on; leave such records out")


def _refuse_unwanted(name: str, value: Any, place: str, record: Mapping[str, Any], format: str) -> None:
    """Raise DataError for a response that is marked as one to avoid; of KTO's form `_liked` does."""
    unwanted = ("false", "0", "0.0") if "completion" in record else ("false",)  # 0 may be a class; CSV has it as text
    if format != "kto" and str(value).lower() in unwanted:
        raise DataError(f"{place}: {name!r} is false, so the response is one to avoid; leave such records out")


EXTRA_FIELDS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos"), _refuse_media),
    **{name: partial(_refuse_unwanted, name) for name in ("label", "kto_tag")},
}


def _prompt_completion(record: Mapping[str, Any], place: str) -> Messages:
    """`prompt` and `completion`, each a text or a list of messages."""
    return [*_asked(record["prompt"]), *_side(record["completion"], "assistant")]


def _preference(record: Mapping[str, Any], place: str) -> Messages:
    """The chosen side of a pair, which may begin with the prompt; what the rejected side begins with too is prompt."""
    chosen, rejected = (_side(record.get(name) or [], "assistant") for name in ("chosen", "rejected"))
    asked = _prompt(record, place) if _first_of(record, _PROMPTS[:-1]) or not _is_whole(chosen) else []
    if not _is_whole(chosen):
        return [*asked, *chosen]
    places = {_text_of(turn): n for n, turn in enumerate(chosen)}
    absent = [turn for turn in asked if _text_of(turn) not in places]
    if absent and not (absent == asked[:1] and isinstance(absent[0], Mapping) and absent[0].get("role") == "system"):
        found = f"'chosen' is a whole conversation without the prompt {_text_of(absent[0])!r:.80}"
        raise DataError(f"{place}: {found}; add it there")
    shared = next((n for n, (one, other) in enumerate(zip(chosen, rejected, strict=False)) if one != other), 0)
    n_asked = max([shared, *(places.get(_text_of(turn), -1) + 1 for turn in asked)])
    return [*absent, *_asked(chosen[:n_asked]), *chosen[n_asked:]]


def _liked(record: Mapping[str, Any], place: str) -> Messages:
    """KTO's `prompt` and `completion`, or the whole as turns, whose `label` is true."""
    if str(record["label"]).lower() not in ("true", "1", "1.0"):
        raise DataError(f"{place}: 'label' is {record['label']!r:.40}, not true, so the response is one to avoid")
    if record.get("completion") is not None:
        return [*_prompt(record, place), *_side(record["completion"], "assistant")]
    if (whole := _first_of(record, _TURNS)) is None:
        raise DataError(f"{place}: neither prompt and completion nor {' or '.join(_TURNS)}; found: {listed(record)}")
    return _side(whole, "user")


def _prompt(record: Mapping[str, Any], place: str) -> Messages:
    """What stands before a chosen or a liked response: a text with its input, or turns."""
    prompt = _first_of(record, _PROMPTS[:-1])
    if prompt is None:
        names = ", ".join(_PROMPTS[:-1])
        raise DataError(f"{place}: no prompt ({names}); found: {listed(record)} (see data.columns.instruction)")
    return _asked(_question(prompt, record.get("input"), place) if isinstance(prompt, str) else prompt)


def _question(instruction: Any, given: Any, place: str) -> str:
    """An instruction with its input, which may be absent."""
    texts = [instruction, given or ""]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{place}: an instruction and its 'input' must be text, found {given!r:.80}")
    return "\n\n".join(filter(None, texts))


def _exchange(turn: Mapping[str, Any], asked: str, answered: str) -> Messages:
    """A question and its answer; what else the mapping has are keys of the answer, which `conversations` checks."""
    rest = {key: value for key, value in turn.items() if key not in (asked, answered)}
    return [{"role": "user", "content": turn[asked]}, {**rest, "role": "assistant", "content": turn[answered]}]


def _human_assistant(record: Mapping[str, Any], place: str) -> Messages:
    """Turns as `{human: …, assistant: …}`, one record or a list in `conversation`, which may have roles instead."""
    alone = {name: record[name] for name in ("system", "human", "assistant") if name in record}
    return _turns(record.get("conversation") or [alone], f"{place}, conversation")


def _turns(turns: Iterable[Any], place: str) -> Messages:
    """Turns as mappings of a role and a text, or of a question and its answer, which may have a system prompt."""
    messages: Messages = []
    for number, turn in enumerate(turns):
        given = {key: value for key, value in turn.items() if value is not None} if isinstance(turn, Mapping) else {}
        if names := next((pair for pair in _PAIRS if {*pair} <= given.keys()), None):
            messages += [{"role": "system", "content": given.pop("system")}] if "system" in given else []
            messages += _exchange(given, *names)
        elif {"role", "from"} & given.keys():
            messages.append(given)
        else:
            found = f"role and content, or {' or '.join(map(' and '.join, _PAIRS))}"
            raise DataError(f"{place}[{number}]: a turn must have {found}; it has {listed(sorted(map(str, given)))}")
    return messages


def _glaive(record: Mapping[str, Any], place: str) -> Messages:
    """Glaive's `system` and `chat`, a text with role marks and `<functioncall>`."""
    start, *parts = _GLAIVE.split(str(record["chat"]))
    if start.strip():
        raise DataError(f"{place}: 'chat' must begin with USER:, found {start.strip()[:40]!r}")
    messages: Messages = []
    if system := re.sub(r"^\s*SYSTEM:\s*", "", str(record.get("system") or "")).strip():
        messages.append({"role": "system", "content": system})
    for mark, text in zip(parts[::2], parts[1::2], strict=True):
        content = text.replace("<|endoftext|>", "").strip()
        message = {"role": _GLAIVE_ROLES[mark.upper()], "content": content}
        if message["role"] == "assistant" and (call := _CALL.search(content)):
            # Its arguments are JSON between apostrophes.
            written = re.sub(r"'(\{.*\})'", r"\1", call[1].strip(), flags=re.S)
            message |= {"content": content[: call.start()].strip(), "tool_calls": written}
        messages.append(message)
    return messages


def _self_instruct(record: Mapping[str, Any], place: str) -> Messages:
    """Self-Instruct's `instruction` with a single one of its `instances`."""
    instances = record["instances"]
    if not isinstance(instances, list) or len(instances) != 1 or not isinstance(instances[0], Mapping):
        raise DataError(f"{place}: 'instances' must have one mapping; write a record for each")
    question = _question(record["instruction"], instances[0].get("input"), place)
    return _exchange({"output": None, **instances[0], "input": question}, "input", "output")


def _open_assistant(record: Mapping[str, Any], place: str) -> Messages:
    """The best path of an Open Assistant tree in `prompt`."""
    path = next(iter(_paths(record["prompt"])), ())
    if not path:
        raise DataError(f"{place}: 'prompt' has no reply, so nothing could be learnt")
    return [{key: n[key] for key in ("role", *PARTS) if key in n} | {"content": n.get("text")} for n in path]


def _paths(root: Any) -> list[tuple[Mapping[str, Any], ...]]:
    """The paths of a tree from its root to a last answer, best first: by the sum of their nodes' places by rank."""
    found: list[tuple[tuple[int, ...], tuple[Mapping[str, Any], ...]]] = []
    waiting: list[tuple[tuple[int, ...], tuple[Mapping[str, Any], ...]]] = []
    waiting += [((0,), (root,))] if isinstance(root, Mapping) else []
    while waiting:
        places, path = waiting.pop()
        replies = _replies(path[-1])
        if len(path) % 2 == 0:  # behind an answer
            replies = [question for question in replies if _replies(question)]
            found += [] if replies else [(places, path)]
        waiting += [((*places, place), (*path, reply)) for place, reply in enumerate(replies)]
    return [path for places, path in sorted(found, key=lambda one: (sum(one[0]), one[0]))]


def _replies(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The replies to a node of a tree by rank, without those that were deleted."""
    replies = [reply for reply in node.get("replies") or [] if isinstance(reply, Mapping) and not reply.get("deleted")]
    return sorted(replies, key=lambda r: r["rank"] if isinstance(r.get("rank"), int | float) else math.inf)


def best_paths(read: Callable[[Any], Iterable[tuple[str, Any]]], n_paths: int, shard: Any) -> Iterator[tuple[str, Any]]:
    """The records of a shard; in place of an Open Assistant tree its `n_paths` best paths, each a tree of its own."""
    for place, record in read(shard):
        trees = _paths(record["prompt"])[:n_paths] if _recognises("open_assistant", record, {}) else []
        if not trees:
            yield place, record
        for number, path in enumerate(trees, start=1):
            chain: list[dict[str, Any]] = []
            for node in reversed(path):
                chain = [{**node, "replies": chain}]
            yield f"{place}, path {number}", {**record, "prompt": chain[0], WHOLE: path[0].get("text")}


def _history_of_mappings(record: Mapping[str, Any], place: str) -> Messages:
    """Alpaca's fields with earlier turns as mappings, of a role and a text, or of a question and its answer."""
    system: Messages = [{"role": "system", "content": record["system"]}] if record.get("system") else []
    last = {"input": _question(record["instruction"], record.get("input"), place), "output": record["output"]}
    return [*system, *_turns(record["history"], f"{place}, history"), *_exchange(last, "input", "output")]


def marked_records(
    read: Callable[[Any], Iterable[tuple[str, Any]]], marks: Mapping[str, Any], field: str, shard: Any
) -> Iterator[tuple[str, Any]]:
    """The records of a shard with `messages` in place of the text in a field, whose turns begin with marks.

    Args:
        marks: by role the text that begins its turns, or several; those of `none` are left out; `\\n` is a line break.
    """
    # A command line has no other way to write a line break.
    role_of = {
        text.replace("\\n", "\n"): role
        for role, own in marks.items()
        for text in ([own] if isinstance(own, str) else own)
    }
    pattern = re.compile(f"({'|'.join(re.escape(text) for text in sorted(role_of, key=len, reverse=True))})")
    for place, record in read(shard):
        text = record.get(field) if isinstance(record, Mapping) else None
        if not isinstance(text, str):
            found = DataError(f"{place}: no field {field!r} for data.role_marks (see data.columns)")
            yield place, record if isinstance(record, DataError) else found
            continue
        start, *parts = pattern.split(text)
        messages: Messages = [{"role": "none", "content": start}]
        for mark, content in zip(parts[::2], parts[1::2], strict=True):
            if role_of[mark] == "none":
                messages[-1]["content"] += content
            else:
                messages.append({"role": role_of[mark], "content": content})
        first, *turns = [{**message, "content": message["content"].strip()} for message in messages]
        if first["content"]:
            yield place, DataError(f"{place}: {first['content'][:40]!r} stands before the first of data.role_marks")
        else:
            yield place, {**{k: v for k, v in record.items() if k != field}, "messages": turns}


def _side(value: Any, role: str) -> Messages:
    """A text, a turn or a list of turns as messages; ShareGPT's turns too."""
    turns = value if isinstance(value, list) else [value if isinstance(value, Mapping) else {"content": value}]
    names = {"from": "role", "value": "content"}
    renamed = [{names.get(k, k): v for k, v in turn.items()} if isinstance(turn, Mapping) else turn for turn in turns]
    return renamed if isinstance(value, list) else [{"role": role, **turn} for turn in renamed]


def _asked(prompt: Any) -> Messages:
    """A prompt as messages: none of them is learnt, unless it has a weight of its own."""
    turns = _side(prompt, "user")
    return [{"weight": 0, **t} if isinstance(t, Mapping) and not {*WEIGHTS} & {*t} else t for t in turns]


def _is_whole(chosen: Messages) -> bool:
    """Whether a side of a pair begins with a turn that is not the assistant's."""
    first = chosen[0] if len(chosen) > 1 else None
    return isinstance(first, Mapping) and ROLES.get(str(first.get("role")).lower()) not in ("assistant", "call")


def _text_of(turn: Any) -> str:
    return str(turn.get("content") if isinstance(turn, Mapping) else turn).strip()


def _first_of(record: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((record[name] for name in names if record.get(name)), None)


@dataclass(frozen=True)
class _Rewriting:
    """How a form becomes messages, the fields it needs and reads, and whether they are enough to recognise it."""

    rewrite: Callable[[Mapping[str, Any], str], Messages]
    needs: tuple[str, ...]
    may_have: tuple[str, ...] = ()
    recognised: bool = True
    types: type | tuple[type, ...] = object  # of the first field, where it is recognised


_REWRITINGS = {
    "history": _Rewriting(_history_of_mappings, ("history", "instruction", "output"), ("input", "system"), types=list),
    "prompt_completion": _Rewriting(_prompt_completion, ("prompt", "completion"), types=(str, list)),
    "human_assistant": _Rewriting(_human_assistant, ("human", "assistant"), ("system",)),
    "human_assistant_turns": _Rewriting(_human_assistant, ("conversation",), types=list),
    "glaive": _Rewriting(_glaive, ("chat",), ("system",), types=str),
    "self_instruct": _Rewriting(_self_instruct, ("instances", "instruction"), types=list),
    "open_assistant": _Rewriting(_open_assistant, ("prompt", "message_tree_id"), types=dict),
    "preference": _Rewriting(_preference, ("chosen",), (*_PROMPTS, "rejected"), recognised=False),
    "kto": _Rewriting(_liked, ("label",), ("completion", *_PROMPTS), recognised=False),
}


def _read(name: str, record: Mapping[str, Any], place: str, names: Mapping[str, str]) -> Example:
    form = _REWRITINGS[name]
    own_fields = set(form.needs).difference(names)  # which data.columns cannot rename
    renamed = {key: record[own] for key, own in names.items() if own in record and own not in own_fields}
    given = {*names, *names.values()} - own_fields
    record = {**{key: value for key, value in record.items() if key not in given}, **renamed}
    missing = [field for field in form.needs if record.get(field) is None]
    if missing:
        raise DataError(f"{place}: no field {missing[0]!r} of data.format={name}; found: {listed(record)}")
    if isinstance(turns := record.get("history"), list) and turns and "history" not in form.needs:
        raise DataError(f"{place}: data.format={name} has no 'history'; give the whole conversation as 'messages'")
    used = {*form.needs, *form.may_have}
    if "prompt" in form.may_have:  # of several prompts the first is read
        order = _PROMPTS if record.get("chosen", record.get("completion")) else _TURNS
        asked = next((name for name in order if record.get(name)), "")
        used -= {*_PROMPTS} - {asked, "input" if isinstance(record.get(asked), str) else asked}
    rest = {key: value for key, value in record.items() if key not in used}
    return from_turns({**rest, "messages": form.rewrite(record, place)}, place, {name: name for name in names})


def _recognises(name: str, record: Mapping[str, Any], names: Mapping[str, str]) -> bool:
    form = _REWRITINGS[name]
    needs = [names.get(field, field) for field in form.needs]
    if not isinstance(record, Mapping) or not form.recognised or any(record.get(field) is None for field in needs):
        return False
    if name == "history":
        turns = record[needs[0]]
        return isinstance(turns, list) and bool(turns) and all(isinstance(turn, Mapping) for turn in turns)
    is_alpaca = all(names.get(key, key) in record for key in ("instruction", "output"))
    return not is_alpaca and isinstance(record[form.needs[0]], form.types)


FORMS = {name: Form(partial(_recognises, name), partial(_read, name)) for name in _REWRITINGS}
