"""Every form of records, with a literal record."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from instruct_lit.config.schema.groups import FORMATS
from instruct_lit.core.data.example import FORMS, Example, to_example
from instruct_lit.core.data.records import FileSource
from instruct_lit.datasets import install
from instruct_lit.errors import DataError

install()
USER, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
TALK = Example("And?", "No.", history=(("Why?", "So."),))
TREE = {
    "message_tree_id": "t", "prompt": {"role": "prompter", "text": "Why?", "replies": [
        {"role": "assistant", "text": "Perhaps.", "rank": 1, "replies": []},
        {"role": "assistant", "text": "So.", "rank": 0, "replies": [
            {"role": "prompter", "text": "And?", "rank": None, "replies": [
                {"role": "assistant", "text": "No.", "rank": 0}, {"role": "assistant", "text": "x", "deleted": True}]},
        ]},
    ]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("record", "format", "example"),
    [
        ([USER, ANSWER, {**USER, "content": "And?"}, {**ANSWER, "content": "No."}], "messages", TALK),
        ({"prompt": "Why?", "completion": "So.", "id": 3}, "prompt_completion", Example("Why?", "So.", extra={"id": 3})),
        ({"prompt": [USER, ANSWER, {**USER, "content": "And?"}], "completion": [{**ANSWER, "content": "No."}]},
         "prompt_completion", replace(TALK, weights=(0.0, 1.0))),
        ({"human": "Why?", "assistant": "So."}, "human_assistant", Example("Why?", "So.")),
        ({"conversation": [{"system": "Hm.", "human": "Why?", "assistant": "So."}, {"human": "And?", "assistant": "No."}]},
         "human_assistant_turns", Example("And?", "No.", "", {}, "Hm.", (("Why?", "So."),))),
        ({"instruction": "And?", "output": "No.", "history": [{"user": "Why?", "assistant": "So."}]}, "history", TALK),
        ({"instruction": "And", "input": "?", "output": "No.", "history": [USER, ANSWER]}, "history",
         Example("And\n\n?", "No.", history=(("Why?", "So."),))),
        ({"instruction": "Why", "instances": [{"input": "this?", "output": "So."}]}, "self_instruct",
         Example("Why\n\nthis?", "So.")),
        (TREE, "open_assistant", TALK),
    ],
)  # fmt: skip
def test_a_form_is_recognised_and_read_by_name(record: Any, format: str, example: Example) -> None:
    assert to_example(record, "f") == to_example(record, "f", None, format) == example


def test_glaive_has_calls_and_results_in_its_text() -> None:
    chat = (
        'USER: 1 + 2?\n\n\nASSISTANT: <functioncall> {"name": "add", "arguments": \'{"a": 1}\'} <|endoftext|>\n\n\n'
        'FUNCTION RESPONSE: {"sum": 3}\n\n\nASSISTANT: It is 3. <|endoftext|>\n'
    )
    example = to_example({"system": "SYSTEM: Be exact.", "chat": chat}, "f")
    assert example == to_example({"system": "SYSTEM: Be exact.", "chat": chat}, "f", None, "glaive")
    assert example.messages == (
        {"role": "system", "content": "Be exact."}, {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "content": "",
         "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": '{"sum": 3}'}, {"role": "assistant", "content": "It is 3."},
    )  # fmt: skip
    with pytest.raises(DataError, match="f: 'chat' must begin with USER:, found 'hello'"):
        to_example({"chat": "hello"}, "f")


@pytest.mark.parametrize("field", ["image", "images", "audio", "video"])
def test_records_with_images_or_sound_are_refused(field: str) -> None:
    record = {"instruction": "Name it.", "output": "A cat.", field: ""}
    assert to_example(record, "f").output == "A cat."
    with pytest.raises(DataError, match="f: has images, audio or video, which cannot be trained on; leave such"):
        to_example({**record, field: ["cat.png"]}, "f")


@pytest.mark.parametrize(
    ("format", "answer"), [("prompt_completion", "completion"), ("preference", "chosen"), ("kto", "completion")]
)
def test_answers_within_a_prompt_are_not_learnt_unless_they_have_a_weight(format: str, answer: str) -> None:
    asked = {"role": "user", "content": "And?"}
    for own, weights in (({}, (0.0, 1.0)), ({"train": True}, ()), ({"weight": 0.5}, (0.5, 1.0))):
        record = {"prompt": [USER, {**ANSWER, **own}, asked], answer: "No.", "label": True}
        found = to_example(record, "f", None, format)
        assert replace(found, extra={}) == replace(TALK, weights=weights)


def test_preferences_and_likes_are_read_by_name_only() -> None:
    pair = {"prompt": "Why?", "chosen": "So.", "rejected": "Hm."}
    assert to_example(pair, "f", None, "preference") == Example("Why?", "So.")
    whole = {"prompt": "Why?", "chosen": [USER, ANSWER], "rejected": [USER]}
    assert to_example(whole, "f", None, "preference") == Example("Why?", "So.")
    shared = [{"from": "human", "value": "Why?"}]
    for prompt in ({"conversations": shared}, {"messages": [USER]}, {"prompt": [USER]}):
        for chosen in (ANSWER, [ANSWER], {"from": "gpt", "value": "So."}, "So."):
            record = {**prompt, "chosen": chosen, "rejected": chosen, "id": 1}
            assert to_example(record, "f", None, "preference") == Example("Why?", "So.", extra={"id": 1})
    answers = {"chosen": "So.", "rejected": "Hm."}
    own = {"instruction": "query", "input": "about"}
    for asked, columns in (({"question": "Why?"}, {}), ({"instruction": "Why?"}, {}), ({"query": "Why?"}, own)):
        assert to_example(asked | answers, "f", columns, "preference") == Example("Why?", "So.")
    for asked, columns in (({"instruction": "Why?", "input": "Here."}, {}), ({"query": "Why?", "about": "Here."}, own)):
        assert to_example(asked | answers, "f", columns, "preference") == Example("Why?\n\nHere.", "So.")
    completed = {"prompt": "Why?", "completion": "So."}
    columns = {"instruction": "prompt", "output": "completion"}  # fields of the form itself keep their names
    assert to_example(completed, "f", columns, "prompt_completion") == Example("Why?", "So.")
    assert to_example({"prompt": "Why?", **answers}, "f", {"output": "chosen"}, "preference") == Example("Why?", "So.")
    with pytest.raises(DataError, match=r"f: no prompt \(prompt, .*found: chosen, rejected \(see data.columns.instr"):
        to_example(answers, "f", None, "preference")
    with pytest.raises(DataError, match="preference has no 'history'; give the whole conversation as 'messages'"):
        to_example({**pair, "history": [["a", "b"]]}, "f", None, "preference")
    liked = {"prompt": "Why?", "completion": "So.", "label": True}
    turns = {"conversations": [*shared, {"from": "gpt", "value": "So."}], "label": True}
    for record in (liked, turns, {"messages": [USER, ANSWER], "label": True}, {**liked, "label": "True"}):
        assert to_example(record, "f", None, "kto") == Example("Why?", "So.")
    with pytest.raises(DataError, match="neither prompt and completion nor messages or conversations; found: label"):
        to_example({"label": True}, "f", None, "kto")
    for unlabelled in (pair, whole, {"chosen": [USER, ANSWER], "rejected": [USER]}):
        with pytest.raises(DataError, match=r"no field 'instruction' .*rejected \(see data.format=preference\)"):
            to_example(unlabelled, "f")
    for format in ("auto", "kto"):
        for label in (False, "False"):  # a table has it as text
            with pytest.raises(DataError, match="the response is one to avoid"):
                to_example({**liked, "label": label}, "f", None, format)


@pytest.mark.parametrize(
    ("record", "format", "message"),
    [
        (
            {"prompt": "Why?"},
            "prompt_completion",
            "no field 'completion' of data.format=prompt_completion; found: prompt",
        ),
        (
            {"instruction": "a", "instances": []},
            "self_instruct",
            "'instances' must have one mapping; write a record for",
        ),
        (
            {"conversation": [{"human": "a"}]},
            "human_assistant_turns",
            r"conversation\[0\]: a turn must have role and content, or .*; it has human",
        ),
        (
            {"conversation": [{"human": "a", "assistant": "b", "tool": "c"}]},
            "auto",
            r"messages\[1\]: 'tool' cannot be trained on",
        ),
        ({"instruction": "a", "output": "b", "history": [{"q": "c"}]}, "auto", r"history\[0\]: .* it has q"),
    ],
)
def test_what_a_form_lacks_is_named(record: Any, format: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_example(record, "f", None, format)


@pytest.mark.parametrize(
    ("record", "format"),
    [
        ({"conversation": [{"human": "Why?", "assistant": "So.", "train": False}, {"human": "And?", "assistant": "No."}]},
         "human_assistant_turns"),
        ({"conversation": [USER, {**ANSWER, "weight": 0}, {"role": "user", "content": "And?"}, {**ANSWER, "content": "No."}]},
         "human_assistant_turns"),
        ({"instruction": "And?", "output": "No.", "history": [{"user": "Why?", "assistant": "So.", "loss": 0}]}, "history"),
        ({"instruction": "And?", "output": "No.", "history": [{**USER, "name": None}, {**ANSWER, "train": False}]}, "history"),
        ({"message_tree_id": "t", "prompt": {"role": "prompter", "text": "Why?", "replies": [
            {"role": "assistant", "text": "So.", "train": False, "replies": [{"role": "prompter", "text": "And?", "replies": [
                {"role": "assistant", "text": "No."}]}]}]}}, "open_assistant"),
        ([{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So.", "train": False},
          {"from": "human", "value": "And?"}, {"from": "gpt", "value": "No."}], "sharegpt"),
    ],
)  # fmt: skip
def test_a_turn_that_is_not_to_be_learnt_is_not_in_any_form(record: Any, format: str) -> None:
    learnt = replace(TALK, weights=(0.0, 1.0))
    assert to_example(record, "f") == to_example(record, "f", None, format) == learnt
    assert learnt.digest != TALK.digest  # neither repeats the other


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "Why", "instances": [{"input": "this?", "output": "So.", "reasoning_content": "Hm."}]},
        {"conversation": [{"human": "Why\n\nthis?", "assistant": "So.", "thinking": "Hm."}]},
        {"message_tree_id": "t", "prompt": {"role": "prompter", "text": "Why\n\nthis?", "lang": "en", "replies": [
            {"role": "assistant", "text": "So.", "reasoning_content": "Hm."}]}},
    ],
)  # fmt: skip
def test_the_thoughts_of_an_answer_are_kept_in_forms_without_a_place_for_them(record: Any) -> None:
    assert to_example(record, "f").messages[-1] == {"role": "assistant", "content": "So.", "reasoning_content": "Hm."}


def test_keys_of_roles_and_texts_may_be_either_pair_and_columns_rename_every_field_of_a_form() -> None:
    theirs = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    for turns, field in (([USER, ANSWER], "conversations"), (theirs, "messages"), ([USER, ANSWER], "conversation")):
        assert to_example({field: turns}, "f") == Example("Why?", "So.")
    with pytest.raises(
        DataError, match=r"messages\[0\]: 'content' cannot be trained on; a turn may have 'from', 'value'"
    ):
        to_example({"messages": [{**theirs[0], "content": "x"}, ANSWER]}, "f")
    asked = {"question": "And?", "answer": "No.", "before": [USER, ANSWER]}
    assert to_example(asked, "f", {"instruction": "question", "output": "answer", "history": "before"}) == TALK


def test_the_prompt_of_a_pair_is_never_lost_beside_a_whole_conversation() -> None:
    system, asked, last = (
        {"role": "system", "content": "Hm."},
        {**USER, "content": "And?"},
        {**ANSWER, "content": "No."},
    )
    talk, other = [USER, ANSWER, asked, last], [USER, ANSWER, asked, {**ANSWER, "content": "Yes."}]
    learnt = replace(TALK, weights=(0.0, 1.0))  # as TRL's extract_prompt: what both sides begin with is prompt
    assert to_example({"chosen": talk, "rejected": other}, "f", None, "preference") == learnt
    assert to_example({"prompt": "And?", "chosen": talk}, "f", None, "preference") == learnt
    record = {"prompt": [system, *talk[:3]], "chosen": talk, "rejected": other}
    assert to_example(record, "f", None, "preference") == replace(learnt, system="Hm.")
    with pytest.raises(
        DataError, match="f: 'chosen' is a whole conversation without the prompt .*Where.*; add it there"
    ):
        to_example({"prompt": "Where?", "chosen": talk}, "f", None, "preference")
    record = {"prompt": "Why?", "instruction": "Where?", "chosen": "So.", "rejected": "No."}
    assert to_example(record, "f", None, "preference").extra == {"instruction": "Where?"}  # listed as not trained on
    liked = {"messages": [USER, ANSWER], "prompt": "Where?", "label": True}
    assert to_example(liked, "f", None, "kto").extra == {"prompt": "Where?"}
    record = {"messages": [USER], "completion": "So.", "label": True}
    assert to_example(record, "f", None, "kto") == Example("Why?", "So.")
    with pytest.raises(DataError, match="without the prompt 'Where"):
        to_example({"prompt": ["Where?"], "chosen": talk}, "f", None, "preference")
    before = {"instruction": "Why?", "output": "So.", "history": [USER, ANSWER], "input": 5}
    for given, format in (({"prompt": "Why?", "chosen": "So.", "input": 5}, "preference"), (before, "auto")):
        with pytest.raises(DataError, match="f: an instruction and its 'input' must be text, found 5"):
            to_example(given, "f", None, format)


@pytest.mark.parametrize("label", [0, 0.0, "0", "0.0", False, "False"])
def test_the_label_of_a_completion_to_avoid_may_be_a_number(label: Any) -> None:
    record = {"prompt": "Why?", "completion": "So.", "label": label}
    with pytest.raises(DataError, match="f: 'label' is false, so the response is one to avoid; leave such records out"):
        to_example(record, "f")
    with pytest.raises(DataError, match=f"f: 'label' is {label!r}, not true, so the response is one to avoid"):
        to_example(record, "f", None, "kto")
    assert to_example({**record, "label": 1.0}, "f", None, "kto") == Example("Why?", "So.")
    assert to_example({"instruction": "Why?", "output": "So.", "label": 0}, "f").extra == {"label": 0}  # a class
    with pytest.raises(DataError, match="f: 'kto_tag' is false"):
        to_example({"messages": [USER, ANSWER], "kto_tag": False}, "f")


def test_the_schema_names_every_form() -> None:
    assert set(FORMATS) == {"auto", "alpaca", *FORMS}


def test_lines_may_be_lists(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '[{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]\n'
    )
    assert list(FileSource(str(tmp_path / "a.jsonl"))) == [Example("Why?", "So.")]


def test_a_column_that_is_read_as_a_text_may_be_named_like_a_mark() -> None:
    columns = {"instruction": "image", "output": "label", "input": "checks"}
    record = {"image": "Is 1 above 2?", "label": "False", "checks": "Think."}
    assert to_example(record, "f", columns) == Example("Is 1 above 2?", "False", "Think.")
    with pytest.raises(DataError, match="f: has images, audio or video"):
        to_example({**record, "images": ["a.png"]}, "f", columns)
    with pytest.raises(DataError, match="f: 'label' is false"):
        to_example({"instruction": "Is 1 above 2?", "output": "No.", "label": "False"}, "f")
