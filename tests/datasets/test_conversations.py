"""Nothing in a conversation is ignored: what cannot be trained on is refused by name."""

import json
from dataclasses import replace
from typing import Any

import pytest

from instruct_lit.core.data.example import Example, to_example
from instruct_lit.core.data.template import Template
from instruct_lit.errors import DataError, TemplateError

USER, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}


def talk(**more: Any) -> dict[str, Any]:
    return {"messages": [USER, {**ANSWER, **more}]}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"train": 2}, "the weight is 2; true, false or a number from 0 to 1 is allowed (weight, train, loss, trainable)"),
        ({"weight": "high"}, "the weight is 'high'; true, false or a number"),
        ({"weight": 1, "train": False}, "'weight', 'train' contradict each other; give one of them"),
        ({"tool_calls": [{"id": "1"}]}, "a call must have a 'name' and a mapping of 'arguments', found {'id': '1'}"),
        ({"function_call": {"name": "f", "arguments": "{"}}, "'arguments' is invalid JSON (Expecting property name"),
        ({"function_call": {"name": "f", "stream": True}}, "'stream' cannot be trained on; a call may have 'name'"),
        ({"thinking": "a", "reasoning": "b"}, "'thinking', 'reasoning' contradict each other; give one of them"),
        ({"thinking": "a </think> b"}, "'reasoning_content' contains </think>, where it would end for a reader; write it"),
        ({"function_call": {"name": "f", "arguments": {"a": "x</tool_call>"}}}, "'tool_calls' contains </tool_call>"),
        ({"reasoning_content": 7}, "'reasoning_content' must be text, found int 7"),
        ({"thinking": "Hm.", "images": ["a.png"], "pins": 2}, "'images', 'pins' cannot be trained on; a turn may"),
        ({"name": "Bob"}, "'name' cannot be trained on"),
        ({"tool_call_id": "1"}, "'tool_call_id' cannot be trained on"),
        ({"content": [{"type": "text", "value": "So."}]}, "content[0]: 'value' cannot be trained on"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": "x"}]},
         "content[1]: a part of type 'image_url'; only {'type': 'text', 'text': …} can be trained on"),
        ({"content": [{"type": "text", "text": "a", "cache_control": {"type": "x"}}]}, "'cache_control' cannot be"),
        ({"content": ["So."]}, "content[0]: a part of type str"),
        ({"content": [{"type": "text"}]}, "content[0]: 'text' must be text, found NoneType"),
        ({"content": []}, "'content' is empty"),
        ({"content": {"text": "So."}}, "'content' must be text, found dict"),
        ({"\x1b[2J": "x"}, r"'\x1b[2J' cannot be trained on"),
    ],
)  # fmt: skip
def test_a_key_that_is_not_understood_is_refused_by_name(more: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        to_example(talk(**more), "f, line 3")
    assert str(caught.value).startswith("f, line 3, messages[1]") and message in str(caught.value)
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize(
    "more",
    [
        {"tool_calls": None, "reasoning_content": "", "weight": 1, "train": True, "refusal": None, "annotations": []},
        {"content": [{"type": "text", "text": "So", "image_url": None}, {"type": "text", "text": "."}], "weight": 1.0},
    ],
)
def test_null_and_empty_values_are_absent_as_arrow_writes_them(more: dict[str, Any]) -> None:
    assert to_example({**talk(**more), "tools": None}, "f") == Example("Why?", "So.")


def test_a_field_beside_the_turns_is_kept_apart_from_the_examples_own() -> None:
    record = {**talk(), "history": [["a", "b"]], "id": 7, "response": "x", "instruction": "y", "extra": {"a": 1}}
    example = to_example(record, "f")
    assert example.history == () and example.instruction == "Why?"
    assert example.extra == {key: value for key, value in record.items() if key != "messages"}
    written = example.as_record()
    assert Example.from_record(written) == example and "id" not in written and "history" not in written


def test_a_response_to_avoid_is_not_trained_on() -> None:
    with pytest.raises(DataError, match="'label' is false, so the response is one to avoid"):
        to_example(
            {"prompt": "a", "completion": "b", "label": False}, "f", {"instruction": "prompt", "output": "completion"}
        )
    assert to_example({"instruction": "a", "output": "b", "label": True}, "f").extra == {"label": True}


def test_columns_move_a_field_and_do_not_copy_it() -> None:
    record = {"input": "How many?", "output": "4."}
    with pytest.raises(
        DataError, match=r"no field 'instruction' for the instruction; found: input, output \(see data.c"
    ):
        to_example(record, "f")
    assert to_example(record, "f", {"instruction": "input"}) == Example("How many?", "4.")
    swapped = to_example(
        {"instruction": "a", "input": "b", "output": "c"}, "f", {"instruction": "input", "input": "instruction"}
    )
    assert (swapped.instruction, swapped.input) == ("b", "a")
    with pytest.raises(DataError, match="no field 'output' for the output"):
        to_example({"output": "a"}, "f", {"instruction": "output"})


def test_a_record_of_many_keys_has_a_short_message() -> None:
    record = {f"key{n}": n for n in range(300_000)}
    with pytest.raises(DataError) as caught:
        to_example(record, "f")
    assert "found: key0, key1, key2" in str(caught.value) and "… and 299992 more (see data.columns)" in str(
        caught.value
    )
    with pytest.raises(DataError, match="'output' has 4,000,001 characters; at most 4,000,000 are allowed"):
        to_example({"instruction": "a", "output": "b" * 4_000_001}, "f")


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
TALK = (
    {"role": "system", "content": "Be exact."},
    {"role": "user", "content": "1 + 2?"},
    {"role": "assistant", "content": "", "reasoning_content": "I should add.", "tool_calls": [CALL]},
    {"role": "tool", "content": "3", "tool_call_id": "c1"},
    {"role": "assistant", "content": "It is 3."},
)


def test_tools_calls_results_thoughts_and_weights_are_kept() -> None:
    as_text = {**CALL, "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    given = [
        TALK[0], {**TALK[1], "weight": 0},  # which a turn that is not learnt has in any case
        {"role": "assistant", "content": None, "thinking": "I should add.", "tool_calls": [as_text], "train": False},
        {**TALK[3], "name": None}, {**TALK[4], "weight": 0.5, "tool_calls": None},
    ]  # fmt: skip
    example = to_example({"messages": given, "tools": [{**TOOL, "strict": None}], "category": "sums"}, "f")
    assert example == Example(
        "", "It is 3.", "", {"category": "sums"}, "Be exact.",
        (("1 + 2?", '{"name": "add", "arguments": {"a": 1, "b": 2}}'),), TALK, (TOOL,), (0.0, 0.5),
    )  # fmt: skip
    assert Example.from_record(json.loads(json.dumps(example.as_record()))) == example
    assert example.first_turns(1).messages == TALK[:3] and example.first_turns(1).weights == (0.0,)
    assert example.user_text == "1 + 2?" and example.digest != replace(example, tools=()).digest
    with pytest.raises(TemplateError, match=r"no {{ tools }} for \({.*; add it or use template=chatml"):
        Template("mine", "{{ instruction }}{{ response }}").turns(example)


@pytest.mark.parametrize(
    "more",
    [
        {"tool_calls": [{"name": "f", "arguments": '{"a": 1, "a": 2}'}]},
        {"tool_calls": '[{"name": "f", "name": "g", "arguments": {}}]'},
    ],
)
def test_a_key_that_stands_twice_in_json_text_is_refused(more: dict[str, Any]) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **more}]
    with pytest.raises(DataError, match=r"messages\[1\]: '.*' is invalid JSON \(the key '\w+' stands more than once\)"):
        to_example({"messages": turns}, "f")


def test_sharegpt_with_function_calls_and_observations() -> None:
    given = [
        {"from": "system", "value": "Be exact."}, {"from": "human", "value": "1 + 2?"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1, "b": 2}}'},
        {"from": "observation", "value": "3"}, {"from": "gpt", "value": "It is 3."},
    ]  # fmt: skip
    example = to_example({"conversations": given, "tools": '[{"name": "add", "parameters": {"type": "object"}}]'}, "f")
    call = {"type": "function", "function": CALL["function"]}
    assert example.messages == (
        *TALK[:2], {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "3"}, TALK[4]
    )  # fmt: skip
    assert example.tools == (TOOL,)


def test_a_weight_of_a_turn_that_is_not_learnt_is_refused() -> None:
    for turn in ({"role": "system", "content": "Hm.", "weight": 1}, {**USER, "train": True}, {**USER, "loss": 0.5}):
        with pytest.raises(
            DataError, match=f"the {turn['role']}'s turn has the weight .*; remove it .data.prompt_weight"
        ):
            to_example({"messages": [turn, *([USER] if turn["role"] == "system" else []), ANSWER]}, "f")


def test_functions_of_the_older_api_are_tools() -> None:
    answer = {"role": "assistant", "function_call": {"name": "add", "arguments": '{"a": 1}'}}
    example = to_example({"messages": [USER, answer], "functions": [TOOL["function"]]}, "f")
    assert example.tools == (TOOL,) and example.extra == {}


def test_turns_may_be_json_text_as_in_a_table() -> None:
    """A CSV file has no other way to hold them."""
    for field, turns in (("messages", [USER, ANSWER]), ("conversations", [{"from": "human", "value": "Why?"}, ANSWER])):
        assert to_example({field: json.dumps(turns, indent=1)}, "f") == Example("Why?", "So.")
    with pytest.raises(DataError, match=r"f: 'messages' is invalid JSON \(Expecting property name"):
        to_example({"messages": str([USER, ANSWER])}, "f")  # as Python writes it
    with pytest.raises(DataError, match="no field 'instruction'"):
        to_example({"messages": "[INST] Why? [/INST] So."}, "f")


def test_a_conversation_beside_a_chosen_answer_names_its_format() -> None:
    record = {"messages": [USER], "chosen": ANSWER, "rejected": {"role": "assistant", "content": "No."}}
    with pytest.raises(DataError, match=r"the last question has no answer \(see data.format=preference\)"):
        to_example(record, "f")
    assert to_example(record, "f", None, "preference").output == "So."


def test_weights_alone_need_no_place_in_a_template() -> None:
    record = {"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER]}
    assert to_example(record, "f") == Example("Why?", "So.", history=(("Why?", "So."),), weights=(0.0, 1.0))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([USER, {**TALK[2]}, {"role": "assistant", "content": "x"}], "turn 3 is the assistant's"),
        ([USER, {**TALK[2]}, {**TALK[3]}], "the last question has no answer"),
        ([TALK[3], ANSWER], "turn 1 is the tool's"),
    ],
)
def test_turns_in_an_impossible_order_are_refused(messages: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_example({"messages": messages}, "f")
    with pytest.raises(DataError, match="a tool must be a mapping with a 'name', found 'add'"):
        to_example({"messages": [USER, ANSWER], "tools": ["add"]}, "f")
