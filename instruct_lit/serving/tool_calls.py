"""Tools in chats: conversations with calls and results as examples, and answers with thoughts and calls read back."""

import json
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from instruct_lit.core.data.example import Example, listed
from instruct_lit.core.data.template import CHAT, Template
from instruct_lit.errors import DataError, InstructLitError
from instruct_lit.evaluation.answer_parts import CALL, OPEN, Parts, parts_of
from instruct_lit.serving.protocol import ApiError, ChatBody, Message

_FOLLOWING = {  # roles that may follow
    "start": ("user",), "user": ("assistant",), "assistant": ("user",), "call": ("tool", "user"),
    "tool": ("tool", "assistant", "user"),
}  # fmt: skip
SYSTEM = ("system", "developer")
_PROBE = {"name": "look_up", "arguments": {"word": "a"}}


@dataclass(frozen=True)
class Reading:
    """How the answers to a chat are read: whether the prompt has opened the thoughts, and whether there are tools.

    `prefix` is the beginning of a call that the prompt ends with, for `tool_choice`; `n_calls` limits the calls.
    """

    opened: bool = False
    has_tools: bool = False
    prefix: str = ""
    n_calls: int | None = None

    def parts(self, text: str, finished: bool) -> Parts:
        """The parts of an answer, or of its beginning; a text without thoughts and tools is unchanged."""
        text = self.prefix + text
        start = text.lstrip()
        if not (self.opened or self.has_tools or start.startswith(OPEN)):
            return Parts("" if not finished and OPEN.startswith(start) else text)
        found = parts_of(text, self.opened, finished, self.has_tools)
        return Parts(found.text, found.thoughts, found.closed, found.calls[: self.n_calls])


def message_of(parts: Parts) -> dict[str, Any]:
    """OpenAI's message of an answer; `reasoning_content` is that of vLLM and DeepSeek."""
    message = {"role": "assistant", "content": parts.text if parts.text or not parts.calls else None, "refusal": None}
    message |= {"reasoning_content": parts.thoughts} if parts.thoughts is not None else {}
    return message | ({"tool_calls": [_call(call) for call in parts.calls]} if parts.calls else {})


def delta_of(parts: Parts, sent: Parts) -> dict[str, Any]:
    """What an answer has more than was sent, as the `delta` of a chunk."""
    thoughts, text = (parts.thoughts or "")[len(sent.thoughts or "") :], parts.text[len(sent.text) :]
    new = list(enumerate(parts.calls))[len(sent.calls) :]
    delta: dict[str, Any] = {"reasoning_content": thoughts} if thoughts else {}
    delta |= {"content": text} if text else {}
    return delta | ({"tool_calls": [{"index": n, **_call(call)} for n, call in new]} if new else {})


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def reading_of(body: ChatBody, template: Template) -> Reading:
    """How the answers to a chat are read.

    Raises: ApiError for tools and calls that cannot be read back, and a `tool_choice` that cannot be followed.
    """
    opened, given = _opens_thought(template), body.tool_choice
    names = [tool.function.get("name") for tool in body.tools or ()]
    for n, name in enumerate(names):
        if not name or not isinstance(name, str):
            message = f"tools.{n}.function.name: {'missing' if name is None else repr(name)[:80]}; give a text"
            raise ApiError(400, message, param=f"tools.{n}.function.name")
    choice = given if isinstance(given, str | None) else given.function.name
    uses: list[tuple[str, list[Any]]] = [
        (f"messages.{n}.tool_calls", m.tool_calls) for n, m in enumerate(body.messages) if m.tool_calls
    ]
    uses += [("tools", body.tools)] if body.tools and choice != "none" else []
    if uses and (reason := _unreadable(template)):
        name, values = uses[0]
        raise _refusal(name, [asdict(value) for value in values], reason)
    n_calls = 1 if body.parallel_tool_calls is False else None
    if choice in (None, "auto", "none"):
        return Reading(opened, bool(names) and choice != "none", n_calls=n_calls)
    shown = given if isinstance(given, str | None) else asdict(given)
    if choice not in names and (choice != "required" or not names):
        raise _refusal("tool_choice", shown, f"tools has {listed(names)}")
    if opened:
        raise _refusal("tool_choice", shown, "the model's prompt begins a thought, so no call can be forced; use auto")
    forced = choice if choice != "required" else names[0] if len({*names}) == 1 else None
    name = "" if forced is None else f' {json.dumps(forced, ensure_ascii=False)}, "arguments":'
    return Reading(False, True, f'{CALL}\n{{"name":{name}', n_calls if choice == "required" else 1)


def _refusal(name: str, value: Any, reason: str) -> ApiError:
    message = f"{name}={value!r:.80}: not supported by this server; {reason}"
    return ApiError(400, message[:300], param=name)


@cache
def _opens_thought(template: Template) -> bool:
    """Whether the prompt of a template begins the thoughts."""
    with suppress(InstructLitError):
        return template.turns(Example("a", ""))[-1][0].rstrip().endswith(OPEN)
    return False


@cache
def _unreadable(template: Template) -> str:
    """Why calls that a template writes cannot be read back; empty where they can."""
    if template.name != CHAT and not template.has_tools:
        return f"the template {template.name!r} of this model has no place for tools"
    reason = f"the template {template.name!r} of this model does not write calls in {CALL}"
    user, call = {"role": "user", "content": "a"}, {"type": "function", "function": _PROBE}
    tools = ({"type": "function", "function": {"name": "look_up", "description": "a", "parameters": {}}},)
    thoughts: dict[str, str]
    for thoughts in ({}, {"reasoning_content": "a"}):  # some templates require thoughts
        answer = {"role": "assistant", "content": "", "tool_calls": [call], **thoughts}
        try:
            _, written = template.turns(Example("a", "b", messages=(user, answer), tools=tools))[-1]
        except InstructLitError as error:
            reason = reason if thoughts else str(error)
            continue
        if parts_of(written).calls == (_PROBE,):
            return ""
    return reason


def example_of_chat(template: Template, body: ChatBody, with_tools: bool) -> Example:
    """The example whose prompt is that of a chat with tools, calls, results or thoughts.

    Raises: DataError for turns in an impossible order, and for arguments that are invalid JSON.
    """
    if body.input:
        raise DataError("input: not supported in a chat with tools, calls or thoughts; write it into the message")
    turns, before = [], "start"
    in_place = template.name == CHAT  # a model's own template says where a system message may stand
    for n, message in enumerate(body.messages):
        if message.role in SYSTEM:
            turns += [{"role": "system", "content": text}] if in_place and (text := text_of(message)) else []
        else:
            if message.role not in _FOLLOWING[before]:
                raise DataError(
                    f"messages.{n}: {message.role} may not follow {before}; allowed are {listed(_FOLLOWING[before])}"
                )
            before = "call" if message.tool_calls else message.role
            turns.append(_turn(message, f"messages.{n}"))
    if before not in ("user", "tool"):
        raise DataError(f"messages: the last must be the user's or a tool's, not of {before}")
    system = "" if in_place else "\n\n".join(text_of(m) for m in body.messages if m.role in SYSTEM)
    first = [{"role": "system", "content": system}] if system and template.has_system else []
    n_answers = sum(turn["role"] == "assistant" for turn in turns)
    messages = (*first, *turns, {"role": "assistant", "content": ""})
    tools = tuple({"type": tool.type, "function": tool.function} for tool in body.tools or ()) if with_tools else ()
    return Example(
        "", "", system=system if first else "", history=(("", ""),) * n_answers, messages=messages, tools=tools
    )


def is_rich(messages: Sequence[Message], template: Template) -> bool:
    """Whether a conversation has more than texts, or for a model's own template system messages behind its first."""
    if template.name == CHAT and any(message.role in SYSTEM for message in messages[1:]):
        return True
    return any(message.role == "tool" or message.tool_calls or message.reasoning_content for message in messages)


def text_of(message: Message) -> str:
    """The content of a message as one text."""
    content = message.content or ""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _turn(message: Message, where: str) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": text_of(message)}
    if message.role == "tool":  # as in training
        turn |= {key: value for key in ("tool_call_id", "name") if (value := getattr(message, key))}
    turn |= {"reasoning_content": message.reasoning_content} if message.reasoning_content else {}
    for call in message.tool_calls or ():
        name, given = call.function.name, call.function.arguments
        try:
            arguments = json.loads(given or "{}")
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}.tool_calls: invalid JSON in arguments ({error})") from error
        if not isinstance(arguments, dict):
            raise DataError(f"{where}.tool_calls: arguments={given!r:.80} of {name!r:.80}; give a JSON object")
        function = {"name": name, "arguments": arguments}
        turn.setdefault("tool_calls", []).append({"id": call.id, "type": "function", "function": function})
    return turn
