"""A conversation with tools, calls and thoughts as one of texts, with the tags that Hermes and Qwen use.

`hf.chat_template_export` writes the same in Jinja, `evaluation.answer_parts` reads it back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from instruct_lit.core.data.example import Example


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
    calls = [json.dumps(_short(call["function"]), ensure_ascii=False) for call in message.get("tool_calls", ())]
    parts = [message["content"], *(f"<tool_call>\n{call}\n</tool_call>" for call in calls)]
    return (f"<think>\n{thoughts}\n</think>\n\n" if thoughts else "") + "\n".join(filter(None, parts))


def _short(function: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": function["name"], "arguments": function["arguments"]}
