"""A template of ours whose tags are special tokens of the model: the ids of training are those of the bundle."""

from pathlib import Path
from typing import Any

import pytest

from instruct_lit.config.model_builders import language_of
from instruct_lit.core.data.encode import Encoder
from instruct_lit.core.data.example import to_example
from instruct_lit.hf.chat_template_export import chat_template
from instruct_lit.hf.tokenizer import HFTokenizer
from tests.configs import composed

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
