"""What a model wrote, in parts: thoughts, the final answer, calls of tools; in the tags of Hermes and Qwen.

`<think>…</think>` stands before an answer, `<tool_call>{"name": …, "arguments": {…}}</tool_call>` behind it.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

from instruct_lit.words import words

Row = Mapping[str, Any]
OPEN, CLOSE, CALL, END_CALL = "<think>", "</think>", "<tool_call>", "</tool_call>"
_TAG = re.compile(f"{OPEN}|{CLOSE}|{CALL}")
_CALL = re.compile(rf"{CALL}\s*(.*?)\s*(?:{END_CALL}|\Z)", re.S)


@dataclass(frozen=True)
class Parts:
    """The parts of an answer; `thoughts` is None without any, `calls` are mappings of `name` and `arguments`.

    What stands in the tags of a call and cannot be read stays in `text`.
    """

    text: str
    thoughts: str | None = None
    closed: bool = True
    calls: tuple[dict[str, Any], ...] = ()
    n_unreadable: int = 0

    @property
    def final(self) -> str:
        """The final answer: text, or without one the calls as JSON."""
        return self.text or "\n".join(json.dumps(call, ensure_ascii=False) for call in self.calls)


def parts_of(text: str, opened: bool | None = None, finished: bool = True, has_tools: bool = True) -> Parts:
    """Read an answer.

    Args:
        opened: whether the prompt has opened the thoughts; by default it has where they only end.
        finished: False while the answer grows; then every part only grows with it: what may be the beginning of a tag,
            an unfinished call and white space at the end are left out.
        has_tools: False leaves calls in the text.
    """
    shown = text if finished else _without_partial_tag(text)
    thoughts, closed = None, True
    start = shown.lstrip()
    if start.startswith(OPEN) or (opened if opened is not None else CLOSE in shown and OPEN not in shown):
        before, close, shown = start.removeprefix(OPEN).partition(CLOSE)
        thoughts, closed = before.strip(), bool(close)
    calls: list[dict[str, Any]] = []
    pieces, end, n_unreadable = [], 0, 0
    for found in _CALL.finditer(shown) if has_tools else ():
        if not finished and not found[0].endswith(END_CALL):
            shown = shown[: found.start()]
            break
        call = _read_call(found[1])
        if call is None:
            n_unreadable += 1
            continue
        pieces.append(shown[end : found.start()].strip())
        calls.append(call)
        end = found.end()
    pieces.append(shown[end:].strip())
    return Parts("\n".join(filter(None, pieces)), thoughts, closed, tuple(calls), n_unreadable)


def n_thoughts(text: str) -> int:
    """Characters of the thoughts at the beginning of an answer, with their tags; also of an answer that grows."""
    start = text.lstrip()
    if not start.startswith(OPEN) and not (start and OPEN.startswith(start)):
        return 0
    end = text.find(CLOSE)
    return len(text) if end < 0 else end + len(CLOSE)


def _without_partial_tag(text: str) -> str:
    n = text.rfind("<")
    return text[:n] if n >= 0 and any(tag.startswith(text[n:]) for tag in (OPEN, CLOSE, CALL)) else text


def _read_call(text: str) -> dict[str, Any] | None:
    """Name and arguments of a call; None where it is not one."""
    try:
        call = json.loads(text)
        arguments = call.get("arguments", call.get("parameters")) or {}
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        is_call = isinstance(call["name"], str) and isinstance(arguments, dict)
        # Neither NaN, which is not JSON, nor halves of characters, which UTF-8 does not have.
        json.dumps([call, arguments], ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, KeyError, AttributeError, RecursionError):
        return None
    return {"name": call["name"], "arguments": arguments} if is_call else None


def final_text(text: str) -> str:
    """The final answer in a text, without white space at its ends."""
    return parts_of(text).final.strip() if _TAG.search(text) else text.strip()


def final(row: Row) -> Row:
    """The row with the final answers in place of response and reference, where they have other parts."""
    texts = {key: final_text(row[key]) for key in ("response", "output") if _TAG.search(row[key])}
    return {**row, **texts} if texts else row


def reference_of(row: Row) -> Parts:
    """The parts of the reference: of the last message, or of a text with tags."""
    if not row.get("messages"):
        return parts_of(row["output"])
    message = row["messages"][-1]
    calls = ({key: call["function"][key] for key in ("name", "arguments")} for call in message.get("tool_calls") or ())
    return Parts(message["content"], message.get("reasoning_content"), calls=tuple(calls))


def thinks(row: Row) -> bool:
    """Whether response or reference has thoughts."""
    return any(parts.thoughts is not None for parts in (parts_of(row["response"]), reference_of(row)))


def uses_tools(row: Row) -> bool:
    """Whether the record has tools, or response or reference a call."""
    found = parts_of(row["response"])
    return bool(row.get("tools") or found.calls or found.n_unreadable or reference_of(row).calls)


def _json(value: Any) -> str:
    """A text that is equal for equal JSON, in which 1 and 1.0 are one number."""
    return repr(json.loads(json.dumps(value, sort_keys=True), parse_int=Fraction, parse_float=Fraction))


def _equal_arguments(found: Parts, wanted: Parts) -> float:
    """Share of the arguments, of the calls in their order, that are equal as JSON; 1 where there is none."""
    ours, theirs = (
        {(n, c["name"], key, _json(value)) for n, c in enumerate(parts.calls) for key, value in c["arguments"].items()}
        for parts in (found, wanted)
    )
    n_named = len({argument[:3] for argument in ours | theirs})
    return len(ours & theirs) / n_named if n_named else 1.0


_OF_THOUGHTS: dict[str, Callable[[Parts, Parts], float]] = {  # of the parts of response and reference
    "thought_words": lambda found, _: len(words(found.thoughts or "")),
    "thoughts_closed": lambda found, _: found.thoughts is not None and found.closed,  # there are thoughts and they end
}
_OF_CALLS: dict[str, Callable[[Parts, Parts], float]] = {
    "call_names": lambda found, wanted: (
        [call["name"] for call in found.calls] == [call["name"] for call in wanted.calls] and not found.n_unreadable
    ),
    "calls_exact": lambda found, wanted: _json(found.calls) == _json(wanted.calls) and not found.n_unreadable,
    "call_arguments": _equal_arguments,
    "unreadable_calls": lambda found, _: found.n_unreadable,
}


def _of_row(metric: Callable[[Parts, Parts], float], row: Row) -> float:
    return float(metric(parts_of(row["response"]), reference_of(row)))


METRICS: dict[str, tuple[Callable[[Row], float], Callable[[Row], bool]]] = {  # each with the rows that it concerns
    **{name: (partial(_of_row, metric), thinks) for name, metric in _OF_THOUGHTS.items()},
    **{name: (partial(_of_row, metric), uses_tools) for name, metric in _OF_CALLS.items()},
}
