"""Random conversations through our templates and reduced foreign ones: learnt is what the assistant wrote, no more."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from omegaconf import OmegaConf

from instruct_lit.config.compose import CONF
from instruct_lit.config.model_builders import language_of
from instruct_lit.core.data.encode import Encoder
from instruct_lit.core.data.example import to_example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.datasets.conversation_texts import assistant_text
from instruct_lit.hf.chat_template_export import chat_template
from instruct_lit.hf.tokenizer import HFTokenizer
from tests.configs import composed
from tests.fixtures.conversations import conversations
from tests.hf.test_chat_template import TEMPLATES, case, learnt

pytest.importorskip("transformers")
TEXT = """{% if tools %}
<|system|>{{ tools }}<|end|>
{% endif %}
<|user|>{{ instruction }}<|end|>
<|assistant|>{{ response }}<|end|>"""
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
RECORD: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "add"}}],
    "messages": [
        {"role": "user", "content": "what is it"},
        {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "I add"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "it is 2"},
    ],
}


def test_tags_that_are_special_tokens_are_those_tokens(llama_directory: Path) -> None:
    own = ["model=hf", f"model.path={llama_directory}", "template=file", "template.path=null"]
    config = composed("train", *own)
    config.template.text, config.template.next_turn = TEXT, TEXT
    tokenizer, template = language_of(config)
    assert isinstance(tokenizer, HFTokenizer)
    example = to_example(RECORD, "f")
    ((_, encoded),) = Encoder(template, tokenizer, 999).encode([example])
    assert encoded.ids.tolist().count(tokenizer.encode("<|end|>")[0]) == 5
    start = tokenizer.hf.decode(list(tokenizer.prompt_start))
    tokenizer.hf.chat_template = chat_template(template, start, tokenizer.end)
    theirs = tokenizer.hf.apply_chat_template(RECORD["messages"], tools=RECORD["tools"], return_dict=False)
    assert theirs == encoded.ids.tolist()[:-1]


def written(name: str, message: dict[str, Any]) -> str:
    """What the assistant writes as a message, with the mark that closes it."""
    if name == "chatml":
        return assistant_text(message) + "<|im_end|><|endoftext|>"
    if name == "inst":
        return f" {message['content'].strip()}</s>"
    thoughts = message.get("reasoning_content", "" if name == "drops" else None)
    calls = (f"<call>{json.dumps(c['function'], ensure_ascii=False)}</call>" for c in message.get("tool_calls", ()))
    before = "" if thoughts is None else f"<think>{thoughts}</think>\n"
    return f"{before}{message['content']}{''.join(calls)}<|end|>"


@given(record=conversations())
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.parametrize("name", ["chatml", *TEMPLATES])
def test_the_mask_of_any_conversation_decodes_to_what_the_assistant_wrote(
    name: str, record: dict[str, Any], llama_directory: Path
) -> None:
    if name == "inst":  # which has no place for anything else
        messages = [{key: m[key] for key in ("role", "content", "weight") if key in m} for m in record["messages"]]
        record = {"messages": [m for m in messages if m["role"] in ("user", "assistant") and m["content"]]}
        roles = [message["role"] for message in record["messages"]]
        assume(roles == ["user", "assistant"] * (len(roles) // 2))
    if name == "chatml":
        file = OmegaConf.load(CONF / "template" / "chatml.yaml")
        tokenizer: Any = GPT2Tokenizer()
        template: Any = Template(file.name, file.text, file.next_turn)
    else:
        tokenizer, template = case(llama_directory, name)
    found = list(Encoder(template, tokenizer, 100_000, "error").encode([to_example(record, "f")]))
    answers = [message for message in record["messages"] if message["role"] == "assistant"]
    expected = [written(name, message) for message in answers if message.get("weight", 1) > 0]
    assert [text for _, encoded in found for text in learnt(encoded, tokenizer)] == expected
    weights = [float(encoded.weights[start]) for _, encoded in found for start, _ in encoded.spans]  # type: ignore[index]
    assert weights == [message.get("weight", 1.0) for message in answers if message.get("weight", 1) > 0]
