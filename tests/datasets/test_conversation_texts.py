"""Tools, calls, results and thoughts in a template of ours: literal texts, and the ids of the bundle's chat template."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from omegaconf import OmegaConf

from instruct_lit.config.compose import CONF
from instruct_lit.core.bundle import save_tokenizer
from instruct_lit.core.data.encode import Encoder
from instruct_lit.core.data.example import Example, to_example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.errors import TemplateError
from tests.fixtures.conversations import conversations

FILE: Any = OmegaConf.load(CONF / "template" / "chatml.yaml")
MARKS = {"keep": "", **{name: f"{{#- thoughts: {name} +#}}" for name in ("drop", "last")}}
CHATML = {name: Template(FILE.name, mark + FILE.text, FILE.next_turn) for name, mark in MARKS.items()}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "é"}}}
TALK = {
    "tools": [TOOL],
    "messages": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "1 + é?"},
        {"role": "assistant", "content": "", "reasoning_content": "I add.", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "2"},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "It is 2.", "thinking": "So."},
    ],
}
CALL_TEXT = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "é"}}\n</tool_call>'


def test_a_conversation_with_tools_letter_by_letter() -> None:
    first, last = CHATML["keep"].turns(to_example(TALK, "f"))
    assert first == (
        "<|im_start|>system\nBe short.\n\n<tools>\n"
        '{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}\n</tools>\n'
        "Call a tool with its name and arguments:\n"
        '<tool_call>\n{"name": "…", "arguments": {…}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n1 + é?<|im_end|>\n<|im_start|>assistant\n",
        f"<think>\nI add.\n</think>\n\n{CALL_TEXT}\n{CALL_TEXT}<|im_end|>",
    )
    assert last == (
        "\n<|im_start|>user\n<tool_response>\n2\n</tool_response>\n<tool_response>\n3\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n", "<think>\nSo.\n</think>\n\nIt is 2.<|im_end|>",
    )  # fmt: skip


@pytest.mark.parametrize(("thoughts", "n"), [("keep", (1, 1)), ("last", (0, 1)), ("drop", (0, 0))])
def test_thoughts_that_are_learnt(thoughts: str, n: tuple[int, int]) -> None:
    turns = CHATML[thoughts].turns(to_example(TALK, "f"))
    assert tuple(response.count("<think>") for _, response in turns) == n


def test_a_template_without_a_place_for_tools_refuses_them() -> None:
    template = Template("mine", "{{ instruction }}:{{ response }}", " {{ instruction }}:{{ response }}")
    with pytest.raises(TemplateError, match=r"template 'mine': no {{ tools }} for \({'.*; add it or use template=chat"):
        template.turns(replace(to_example(TALK, "f"), system=""))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The tokenizer of a bundle as transformers opens it, by what is learnt of thoughts."""
    transformers = pytest.importorskip("transformers")

    @cache
    def opened(thoughts: str) -> Any:
        folder = tmp_path_factory.mktemp(thoughts)
        save_tokenizer(folder, GPT2Tokenizer(), 64, CHATML[thoughts])
        return transformers.AutoTokenizer.from_pretrained(folder)

    return opened


@given(record=conversations())
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@pytest.mark.parametrize("thoughts", list(MARKS))
def test_trap_5_every_kind_of_record_gets_our_ids_from_transformers(
    thoughts: str, record: dict[str, Any], theirs: Callable[[str], Any], tokenizer: GPT2Tokenizer
) -> None:
    example, template = to_example(record, "f"), CHATML[thoughts]
    encoder = Encoder(template, tokenizer, 100_000)
    ((_, encoded),) = encoder.encode([example])
    messages = [{k: v for k, v in m.items() if k != "weight"} for m in record["messages"]]
    for whole, given_messages in ((True, messages), (False, messages[:-1])):
        found = theirs(thoughts).apply_chat_template(
            given_messages, tools=record["tools"] or None, add_generation_prompt=not whole, return_dict=False
        )
        assert found == (encoded.ids.tolist()[:-1] if whole else encoder.prompt_ids(example))


def test_the_form_of_a_plain_conversation_is_unchanged() -> None:
    plain = Example("Do.", "Done.", "x", system="Be short.")
    assert CHATML["keep"].turns(plain) == [
        (
            "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nDo.\n\nx<|im_end|>\n<|im_start|>assistant\n",
            "Done.<|im_end|>",
        )
    ]


def test_the_last_turns_stay_whole_with_system_prompt_and_tools(tokenizer: GPT2Tokenizer) -> None:
    more = [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "No.", "weight": 0.5}]
    example = to_example({**TALK, "messages": [*TALK["messages"], *more]}, "f")
    last_alone = to_example({**TALK, "messages": TALK["messages"][:1] + more}, "f")
    whole = encoded_at(example, 10_000, tokenizer)
    assert encoded_at(example, len(whole[1].ids), tokenizer)[0] == example
    # The second turn begins with the result of a call, so the third alone is left.
    kept, encoded = encoded_at(example, len(whole[1].ids) - 1, tokenizer)
    assert kept == last_alone and len(encoded.spans) == 1 and kept.weights == (0.5,)
    assert encoded.ids.tolist() == encoded_at(last_alone, 10_000, tokenizer)[1].ids.tolist()
    encoder = Encoder(CHATML["keep"], tokenizer, len(encoded.ids) - 1, "truncate_left")
    assert list(encoder.encode([example])) == [] and encoder.counts["n_dropped_long"] == 1


def encoded_at(example: Example, max_length: int, tokenizer: GPT2Tokenizer) -> tuple[Example, Any]:
    (found,) = Encoder(CHATML["keep"], tokenizer, max_length, "truncate_left").encode([example])
    return found


def test_the_last_turns_of_texts_are_kept_and_counted(tokenizer: GPT2Tokenizer) -> None:
    example = Example("three", "3", "x", {"id": 1}, "Be short.", (("one", "1"), ("two", "2")))
    kept = [replace(example, history=example.history[n:]) for n in range(3)]
    lengths = [len(encoded_at(one, 10_000, tokenizer)[1].ids) for one in kept]
    assert [encoded_at(example, n, tokenizer)[0] for n in lengths] == kept
    encoder = Encoder(CHATML["keep"], tokenizer, lengths[1], "truncate_left")
    assert len(list(encoder.encode([example, kept[1]]))) == 2
    assert encoder.counts == {"n_encoded": 2, "n_truncated": 1, "n_dropped_long": 0, "n_without_weight": 0}
