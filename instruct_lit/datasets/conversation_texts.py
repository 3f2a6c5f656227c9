"""Conversations with tools, calls and thoughts as texts, with the tags that Hermes and Qwen use; and their last turns.

`hf.chat_template_export` writes the same in Jinja, `evaluation.answer_parts` reads it back.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from instruct_lit.core.data.encode import Encoder
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.tokenizer import Turns, closed, encode_turns


def as_texts(example: Example) -> Example:
    """The example with texts in place of its messages: a turn for each of the assistant's messages."""
    turns: list[tuple[str, str]] = []
    said: list[str] = []
    for message in example.messages:
        if message["role"] == "assistant":
            turns.append(("\n".join(said), assistant_text(message)))
            said = []
        elif message["role"] == "tool":
            said.append(f"<tool_response>\n{message['content']}\n</tool_response>")
        elif message["role"] == "user":
            said.append(message["content"])
    *history, (instruction, output) = turns
    return replace(example, instruction=instruction, input="", output=output, history=tuple(history), messages=())


def assistant_text(message: Mapping[str, Any]) -> str:
    """What the model writes as a message: thoughts, text and calls."""
    thoughts = message.get("reasoning_content")
    called = [{key: c["function"][key] for key in ("name", "arguments")} for c in message.get("tool_calls", ())]
    calls = [json.dumps(call, ensure_ascii=False) for call in called]
    parts = [message["content"], *(f"<tool_call>\n{call}\n</tool_call>" for call in calls)]
    return (f"<think>\n{thoughts}\n</think>\n\n" if thoughts else "") + "\n".join(filter(None, parts))


def last_turns(encoder: Encoder, example: Example, turns: Turns) -> tuple[Example, Turns]:
    """The last turns of a conversation that fit, with its system prompt and tools; none if it fits as a whole.

    They begin with a user's message, so no result is without its call.
    """
    tokenizer, n_turns, shown = encoder.tokenizer, len(example.history) + 1, example
    for start in range(n_turns):
        if start:
            part = _from_turn(example, start)
            if part is None:
                continue
            piece, texts = encoder.template.renderings(part)[-1]
            shown = replace(piece, extra=example.extra)
            turns = encode_turns(tokenizer, [texts])[0]
        n_tokens = len(tokenizer.prompt_start) + sum(len(p) + len(closed(r, tokenizer.eot_id)) for p, r in turns)
        if n_tokens <= encoder.max_length:
            encoder.counts["n_truncated"] += start > 0
            break
    return shown, turns


def _from_turn(example: Example, start: int) -> Example | None:
    """The conversation from a turn on; None where that begins with a result, or nothing of it is learnt."""
    *history, (instruction, output) = [*example.history, (example.instruction, example.output)][start:]
    messages = example.messages
    if messages:
        ends = [n for n, message in enumerate(messages, start=1) if message["role"] == "assistant"]
        first = messages[:1] if messages[0]["role"] == "system" else ()
        messages = (*first, *messages[ends[start - 1] :])
        if messages[len(first)]["role"] == "tool":
            return None
    weights = example.weights[start:]
    if weights and not any(weights):
        return None
    last = replace(example, instruction=instruction, output=output, history=tuple(history))
    return replace(last, messages=messages, weights=weights)
