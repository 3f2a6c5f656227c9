"""A literal record of every form, recognised and named, and every way in which one can be wrong."""

import math

import pytest

from instruct_lit.core.data.example import Example, to_example
from instruct_lit.errors import DataError

ALPACA = {
    "instruction": "And now?", "input": "x", "output": "Now.", "system": "Be short.",
    "history": [["Hello", "Hi!"], ["Why?", "So."]], "topic": "talk",
}  # fmt: skip
SHAREGPT = {
    "id": "c1",
    "conversations": [
        {"from": "system", "value": "Be short."},
        {"from": "human", "value": "Hello"},
        {"from": "gpt", "value": "Hi!"},
        {"from": "human", "value": "Why?"},
        {"from": "gpt", "value": "So."},
    ],
}
MESSAGES = {
    "messages": [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So.", "weight": 1},
    ],
    "source": "test",
}
TALK = {"system": "Be short.", "history": (("Hello", "Hi!"),)}


@pytest.mark.parametrize(
    ("format", "record", "example"),
    [
        ("alpaca", {"instruction": "a", "output": "b"}, Example("a", "b")),
        (
            "alpaca",
            ALPACA,
            Example("And now?", "Now.", "x", {"topic": "talk"}, "Be short.", (("Hello", "Hi!"), ("Why?", "So."))),
        ),
        ("sharegpt", SHAREGPT, Example("Why?", "So.", "", {"id": "c1"}, **TALK)),
        ("messages", MESSAGES, Example("Why?", "So.", "", {"source": "test"}, **TALK)),
        ("messages", {"messages": MESSAGES["messages"][1:3]}, Example("Hello", "Hi!")),
    ],
)
def test_every_form_is_read_when_named_and_when_recognised(format: str, record: dict, example: Example) -> None:
    assert to_example(record, "f", None, format) == example  # type: ignore[arg-type]
    assert to_example(record, "f") == example
    assert Example.from_record(example.as_record()) == example


def test_names_of_the_lists_are_mapped_and_a_system_field_stands_before_all() -> None:
    record = {"dialog": SHAREGPT["conversations"][1:3], "sys": "Be kind.", "level": 2}
    example = to_example(record, "f", {"conversations": "dialog", "system": "sys"})
    assert example == Example("Hello", "Hi!", "", {"level": 2}, "Be kind.")
    named = to_example({**record, "messages": []}, "f", {"conversations": "dialog"}, "sharegpt")
    assert named.instruction == "Hello"


def test_a_conversation_is_cut_behind_a_turn() -> None:
    example = to_example(ALPACA, "f")
    assert example.first_turns(3) is example
    assert example.first_turns(2) == Example("Why?", "So.", "", {"topic": "talk"}, "Be short.", (("Hello", "Hi!"),))
    assert example.first_turns(1) == Example("Hello", "Hi!", "", {"topic": "talk"}, "Be short.")


def said(*roles: str) -> dict:
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


@pytest.mark.parametrize(
    ("record", "format", "message"),
    [
        (said("assistant"), "auto", "the user first; turn 1 is the assistant's"),
        (said("user", "user", "assistant"), "auto", "turn 2 is the user's"),
        (said("user", "assistant", "user"), "auto", "the last question has no answer"),
        (said("user"), "auto", "the last question has no answer"),
        (said("system"), "auto", "the last question has no answer"),
        (said("user", "assistant", "system", "assistant"), "auto", "turn 3 is the system's"),
        (said("user", "tool"), "auto", "turn 2 is the tool's"),
        (said("user", "wizard"), "auto", "messages[1]: 'role' is 'wizard'; allowed are user, human, assistant"),
        ({"messages": ["hi"]}, "auto", "messages[0]: a turn must be a mapping with 'role' and 'content', found 'hi'"),
        ({"messages": []}, "auto", "no list of turns in 'messages'; found: messages"),
        (
            {"text": "a"},
            "sharegpt",
            "no list of turns in 'conversations'; found: text (see data.columns and data.format)",
        ),
        (
            {"conversations": [{"from": "human", "value": None}]},
            "auto",
            "conversations[0]: 'value' must be text, found NoneType",
        ),
        ({"messages": [{"role": "user", "content": " "}]}, "auto", "messages[0]: 'content' is empty"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "auto",
            "messages[0], content[0]: a part of type 'image_url'; only {'type': 'text', 'text': …} can be trained on",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]},
            "auto",
            "every turn has weight 0, so nothing could be learnt",
        ),
        ({**ALPACA, "history": [["a"]]}, "auto", "'history' must be a list of pairs [question, answer], found ['a']"),
        ({**ALPACA, "history": "a"}, "auto", "'history' must be a list of pairs"),
        (MESSAGES, "alpaca", "no field 'instruction' for the instruction; found: messages, source"),
    ],
)
def test_conversations_that_cannot_be_learnt_say_where(record: dict, format: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        to_example(record, "f, line 3", None, format)  # type: ignore[arg-type]
    assert str(caught.value).startswith("f, line 3") and message in str(caught.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1], "f, record 3: a record must be a mapping of fields, found list"),
        ({"output": "b"}, "f, record 3: no field 'instruction' for the instruction; found: output (see data.columns)"),
        ({"instruction": "a"}, "no field 'output' for the output"),
        ({"text": "a"}, "found: text, plain text without instruction and answer (see data.columns)"),
        ({"instruction": "a", "output": 7}, "'output' must be text, found int 7"),
        ({"instruction": "a", "output": "b", "input": ["x"]}, "'input' must be text, found list"),
        ({"instruction": " \n", "output": "b"}, "'instruction' is empty"),
        ({"instruction": "a", "output": ""}, "'output' is empty"),
        ({"instruction": "a", "output": "b\ufffd"}, "'output' has broken characters"),
        ({"instruction": "a\ud800", "output": "b"}, "'instruction' has broken characters"),
    ],
)
def test_bad_records_say_what_is_wrong(record: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        to_example(record, "f, record 3")
    assert message in str(caught.value)


def test_columns_are_mapped_and_other_fields_carried_along() -> None:
    record = {"question": "q", "answer": "a", "context": None, "level": 3}
    example = to_example(record, "f", {"instruction": "question", "output": "answer", "input": "context"})
    assert example == Example("q", "a", "", {"level": 3})


def test_a_field_that_no_file_can_hold_is_refused() -> None:
    record = {"instruction": "q", "output": "a", "note": "é", "tags": [{"x": "\ud83d"}]}
    unlike = {"instruction": "a", "output": "b", "score": math.nan, "far": [-math.inf, {"x": 1}], "n": 10**30}
    assert to_example(unlike, "f").extra == {"score": None, "far": [None, {"x": 1}], "n": 10**30}  # as JSON has them
    with pytest.raises(DataError, match="f: a field beside the texts has broken characters; repair or remove it"):
        to_example(record, "f")
    assert to_example(record | {"tags": None}, "f").extra == {"note": "é"}
