"""data.key, data.header, data.role_marks and data.n_paths: how files are read that do not say it themselves."""

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from instruct_lit.config.check_commands import check_command
from instruct_lit.config.data_builders import set_reading
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.records import FileSource
from instruct_lit.datasets import install
from instruct_lit.datasets.split_groups import prompt_text
from instruct_lit.errors import ConfigError, DataError
from tests.configs import composed

install()
MARKS = 'data.role_marks={user: "[INST]", assistant: "[/INST]", none: ["<s>", "</s>"]}'


def source(path: Path, *options: str, columns: dict[str, str] | None = None) -> FileSource:
    found = FileSource(str(path), columns)
    set_reading(found, composed("train", "data=files", f"data.path={path}", *options).data)
    return pickle.loads(pickle.dumps(found))  # as for a worker


def test_the_records_of_a_key(tmp_path: Path) -> None:
    records = [{"instruction": "a", "output": "b"}]
    content = json.dumps({"data": records, "other": [{"instruction": "c", "output": "d"}]})
    (tmp_path / "a.json").write_text(content)
    with gzip.open(tmp_path / "b.json.gz", "wt") as file:
        file.write(content)
    for name in ("a.json", "b.json.gz"):
        path = tmp_path / name
        assert list(source(path, "data.key=data")) == [Example("a", "b")]
        with pytest.raises(DataError, match=r"name one of its lists \(data, other\) as data.key, or rename a file"):
            list(source(path))
        with pytest.raises(DataError, match="no list of records in 'nothing'; its keys are data, other"):
            list(source(path, "data.key=nothing"))
        assert source(path, "data.key=data").fingerprint() != source(path, "data.key=other").fingerprint()


def test_an_object_with_turns_is_one_record(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    (tmp_path / "a.json").write_text(json.dumps({"conversations": turns, "id": 1}))
    assert list(source(tmp_path / "a.json")) == [Example("Why?", "So.", extra={"id": 1})]
    with pytest.raises(DataError, match=r"a.json, conversations\[0\]: no field 'instruction'"):
        list(source(tmp_path / "a.json", "data.key=conversations"))
    (tmp_path / "b.json").write_text(
        json.dumps({"data": [{"role": "a cook", "instruction": "Fry.", "output": "Done."}]})
    )
    assert list(source(tmp_path / "b.json")) == [Example("Fry.", "Done.", extra={"role": "a cook"})]


def test_a_table_without_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"Say, hi.",Hi\nGo.,Gone\n')
    columns = {"instruction": "1", "output": "2"}
    found = list(source(tmp_path / "a.csv", "data.header=false", columns=columns))
    assert found == [Example("Say, hi.", "Hi"), Example("Go.", "Gone")]


@pytest.mark.parametrize(
    ("text", "history", "last"),
    [
        ("<s>[INST] Hello [/INST] Hi </s><s>[INST]And?[/INST]So.</s>", (("Hello", "Hi"),), ("And?", "So.")),
        ("[INST] a\n[/INST]\nb", (), ("a", "b")),
    ],
)
def test_turns_that_begin_with_marks(
    tmp_path: Path, text: str, history: tuple[Any, ...], last: tuple[str, str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": text, "id": 1}) + "\n")
    assert list(source(path, MARKS)) == [Example(*last, extra={"id": 1}, history=history)]


def test_the_field_of_the_marks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"chosen": "\n\nHuman: Hm?\n\nAssistant: So.", "rejected": "x"}) + "\n")
    marks = 'data.role_marks={user: "\\n\\nHuman:", assistant: "\\n\\nAssistant:"}'
    options = (marks, "data.columns={text: chosen}")
    check_command("train", composed("train", "data=files", f"data.path={path}", *options))
    found = source(path, marks, "data.think_tags=true", columns={"text": "chosen"})  # as those of data.sets are given
    assert list(found) == [Example("Hm?", "So.", extra={"rejected": "x"})]
    assert "Human" in found.reading and "think_tags" in found.reading, "both are in the fingerprint"
    with pytest.raises(ConfigError, match="data.columns.text=chosen: allowed are instruction, input"):
        check_command("train", composed("train", "data=files", f"data.path={path}", options[1]))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "Once [INST] a [/INST] b"}, "line 1: 'Once' stands before the first of data.role_marks"),
        ({"text": "[INST] a [INST] b [/INST] c"}, "user and assistant must alternate"),
        ({"body": "x"}, r"line 1: no field 'text' for data.role_marks \(see data.columns\)"),
    ],
)
def test_texts_that_have_no_such_turns(tmp_path: Path, record: dict[str, str], message: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(DataError, match=message):
        list(source(tmp_path / "a.jsonl", MARKS))


THINKING = {"role": "assistant", "content": "Two.", "reasoning_content": "1 + 1"}


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        ({"instruction": "Add", "input": "1 and 1", "output": "<think>\n1 + 1\n</think>\n\nTwo."},
         ({"role": "user", "content": "Add\n\n1 and 1"}, THINKING)),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "<think>1 + 1</think>Two."}]},
         ({"role": "user", "content": "a"}, THINKING)),
        ({"instruction": "a", "output": "<think>\n\n</think>\n\nTwo.", "system": "s"}, ()),
        ({"instruction": "a", "output": "Write <think>x</think>"}, ()),
    ],
)  # fmt: skip
def test_thoughts_inside_a_text(tmp_path: Path, record: dict[str, Any], messages: tuple[Any, ...]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record) + "\n")
    (plain,), (found,) = list(source(path)), list(source(path, "data.think_tags=true"))
    assert not plain.messages and found.messages == messages and "<think>" in plain.output
    assert found.output == ("Write <think>x</think>" if "Write" in plain.output else "Two.")
    assert (found.system, found.history) == (plain.system, plain.history)
    assert source(path).fingerprint() != source(path, "data.think_tags=true").fingerprint()


def test_a_conversation_keeps_its_weights_tools_and_other_thoughts(tmp_path: Path) -> None:
    path, tool = tmp_path / "a.jsonl", {"type": "function", "function": {"name": "add", "parameters": {}}}
    user, first = {"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>x</think>b", "weight": 0}
    last = {"role": "assistant", "content": "<think>z</think>d", "reasoning_content": "y"}
    path.write_text(json.dumps({"messages": [user, first, user, last], "tools": [tool]}) + "\n")
    (found,) = list(source(path, "data.think_tags=true"))
    assert [m.get("reasoning_content") for m in found.messages] == [None, "x", None, "y\nz"]
    assert (found.history, found.output, found.weights, found.tools) == ((("a", "b"),), "d", (0.0, 1.0), (tool,))


def test_a_thought_without_an_end_or_an_answer_is_a_bad_record(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for text in ("<think>x", "<think>x</think> "):
        path.write_text(json.dumps({"instruction": "a", "output": text}) + "\n")
        with pytest.raises(DataError, match=r"a.jsonl, line 1: '<think>x.*' has no </think> with an answer behind it"):
            list(source(path, "data.think_tags=true"))
    path.write_text(json.dumps({"instruction": "a", "output": "<think>x<think>y</think>z</think>So."}) + "\n")
    with pytest.raises(DataError, match=r"line 1: '<think>x.*' has more than one </think>"):
        list(source(path, "data.think_tags=true"))


def reply(text: str, rank: int | None = None, *replies: dict[str, Any], role: str = "assistant") -> dict[str, Any]:
    return {"role": role, "text": text, "rank": rank, "replies": list(replies)}


def test_the_best_paths_of_a_tree(tmp_path: Path) -> None:
    unanswered = reply("Hm?", None, role="prompter")
    question = reply("And?", None, reply("No.", 1), reply("Yes.", 0), role="prompter")
    gone = {**reply("Spam.", 0), "deleted": True}
    root = reply("Why?", None, reply("Perhaps.", 1, unanswered), reply("So.", 0, unanswered, question), gone,
                 role="prompter")  # fmt: skip
    trees = [{"message_tree_id": "t", "prompt": root}, {"message_tree_id": "u", "prompt": reply("Alone?")}]
    path = tmp_path / "trees.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in [*trees, {"instruction": "a", "output": "b"}]))
    extra, so, other = {"conversation": "Why?"}, (("Why?", "So."),), Example("a", "b")
    yes, no = (Example("And?", text, extra=extra, history=so) for text in ("Yes.", "No."))
    perhaps = Example("Why?", "Perhaps.", extra=extra)
    for n, found in ((2, [yes, no, other]), (9, [yes, no, perhaps, other])):
        opened = source(path, f"data.n_paths={n}")
        opened.on_bad_record = "skip"
        assert list(opened) == found
        assert not opened.notes.unread_fields
        assert opened.notes.n_bad == {"'prompt' has no reply, so nothing could be learnt": 1}
    assert next(iter(source(path))) == Example("And?", "Yes.", history=so)
    with pytest.raises(DataError, match="line 2: 'prompt' has no reply, so nothing could be learnt"):
        list(source(path, "data.n_paths=2"))
    assert {prompt_text(one) for one in (yes, no, perhaps)} == {"Why?"}  # one part of the split


def test_options_without_files_and_unknown_roles_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.role_marks.robot=x: allowed are system, user, assistant, tool, none"):
        check_command("train", composed("train", "data.role_marks={robot: x}"))
    data = composed("train", "data.key=x").data
    with pytest.raises(ConfigError, match="data=demo is not read from files"):
        set_reading(object(), data)
