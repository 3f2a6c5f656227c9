"""Nothing in a conversation is ignored: what cannot be trained on is refused by name."""

from typing import Any

import pytest

from instruct_lit.core.data.example import Example, to_example
from instruct_lit.errors import DataError

USER, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}


def talk(**more: Any) -> dict[str, Any]:
    return {"messages": [USER, {**ANSWER, **more}]}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"train": False}, "'train' is False; single turns cannot be excluded from the loss"),
        ({"weight": 0.5}, "'weight' is 0.5; single turns cannot be excluded"),
        ({"tool_calls": [{"id": "1"}]}, "'tool_calls' cannot be trained on; a turn may have 'role', 'content'"),
        ({"function_call": {"name": "f"}}, "'function_call' cannot be trained on"),
        ({"reasoning_content": "Hm."}, "'reasoning_content' cannot be trained on"),
        ({"thinking": "Hm.", "images": ["a.png"]}, "'thinking', 'images' cannot be trained on"),
        ({"name": "Bob"}, "'name' cannot be trained on"),
        ({"loss": False}, "'loss' cannot be trained on"),
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
