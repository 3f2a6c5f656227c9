"""Files of responses of any origin."""

import json
from pathlib import Path

import pytest

from instruct_lit.core.generation.responses import write_jsonl
from instruct_lit.errors import DataError
from instruct_lit.evaluation.answer_files import read_jsonl, read_metrics, read_responses
from instruct_lit.evaluation.answer_parts import Parts, reference_of


def test_results_of_an_earlier_evaluation_are_dropped(tmp_path: Path) -> None:
    record = {"instruction": "a", "input": None, "output": "b", "answer": "c", "id": 7, "history": [["x", "y"]]}
    found = {"scores": {"exact_match": 1}, "leak": "exact", "judge": {"value": 3}}
    write_jsonl(
        tmp_path / "r.jsonl", [{**record, **found, "loss": 0.5, "n_response_tokens": 2}, {**record, "loss": "high"}]
    )
    plain = {**record, "response": "c"}
    del plain["answer"]
    assert read_responses(tmp_path / "r.jsonl", "answer") == [{**plain, "loss": 0.5, "n_response_tokens": 2}, plain]
    (wanted, _) = read_responses(tmp_path / "r.jsonl", "output")  # as in files of other programs that have no reference
    assert (wanted["response"], wanted["output"]) == ("b", "")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output": None}, "no text in 'output'; found: id, input, instruction, output, response"),
        ({"input": 5}, "'input' must be text, found 5"),
        ({"history": "before"}, "'history' is a list of pairs .question, answer., found 'before'"),
        ({"history": [["a", 1]]}, "'history' is a list of pairs"),
        ({"note": "\ud800"}, "lone surrogates"),
    ],
)
def test_unusable_records_are_refused_with_their_place(tmp_path: Path, fields: dict, message: str) -> None:
    record = {"instruction": "a", "output": "b", "response": "c", **fields}
    (tmp_path / "r.json").write_text(json.dumps([record]))
    with pytest.raises(DataError, match=f"r.json, record 0: {message}"):
        read_responses(tmp_path / "r.json", "response")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a', "line 2: invalid JSON (Unterminated string starting at)"),
        (b"7\n", "line 1: not a JSON object"),
    ],
)
def test_a_damaged_line_of_an_own_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "history.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_jsonl(file)
    assert str(raised.value) == f"{file}, {message}"


ADD = {"name": "add", "arguments": {"a": 1}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": ADD}]}
WRITTEN = {**CALLED, "tool_calls": [{"type": "function", "function": {**ADD, "arguments": '{"a": 1}'}}]}
USER = {"role": "user", "content": "1 + 2?"}


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (CALLED, Parts("", calls=(ADD,))),
        (WRITTEN, Parts("", calls=(ADD,))),  # as in OpenAI's files
        ({**CALLED, "tool_calls": [ADD]}, Parts("", calls=(ADD,))),
        ({"role": "assistant", "content": "3", "thinking": "So."}, Parts("3", "So.")),
        ({"role": "assistant", "content": [{"type": "text", "text": "3"}]}, Parts("3")),
        (None, Parts("3")),  # the question alone
    ],
)
def test_messages_of_any_form_are_read_as_those_of_training(
    tmp_path: Path, answer: dict | None, reference: Parts
) -> None:
    first = [{"role": "system", "content": "Add."}, USER, {"role": "assistant", "content": "4"}, USER]
    row = {"messages": [*first, *([answer] if answer else [])], "output": "3", "response": "3"}
    write_jsonl(tmp_path / "r.jsonl", [row, {**row, "instruction": "of its own", "id": 9}])
    found, own = read_responses(tmp_path / "r.jsonl", "response")
    assert reference_of(found) == reference and (found["system"], found["history"]) == ("Add.", [["1 + 2?", "4"]])
    assert (found["instruction"], own["instruction"], own["id"]) == ("1 + 2?", "of its own", 9)
    write_jsonl(tmp_path / "again.jsonl", [found])
    assert read_responses(tmp_path / "again.jsonl", "response") == [found]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("text", "r.jsonl, line 1: 'messages' is invalid JSON (Expecting value"),
        ({"a": 1}, "r.jsonl, line 1: no list of turns in 'messages'; found: messages, tools"),
        ([{"role": "assistant"}], "r.jsonl, line 1, messages[0]: 'content' must be text, found NoneType"),
        ([USER, {**CALLED, "tool_calls": [{"name": 3}]}], "r.jsonl, line 1, messages[1]: a call must have a 'name'"),
        (["a"], "r.jsonl, line 1, messages[0]: a turn must be a mapping with 'role' and 'content', found 'a'"),
    ],
)
def test_messages_that_cannot_be_read_are_refused_with_their_place(tmp_path: Path, messages, message: str) -> None:
    write_jsonl(tmp_path / "r.jsonl", [{"messages": messages, "output": "b", "response": "c"}])
    with pytest.raises(DataError) as raised:
        read_responses(tmp_path / "r.jsonl", "response")
    assert message in str(raised.value)


@pytest.mark.parametrize("content", [b"", b'{"val/loss": 1', b"[1]", b"\x00\x00", b"\xff", b"[" * 100_000])
def test_damaged_metrics_are_named(tmp_path: Path, content: bytes) -> None:
    assert read_metrics(tmp_path) == {}
    (tmp_path / "metrics.json").write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_metrics(tmp_path)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'metrics.json'}: damaged (")
    assert message.endswith("); give another run, or resume this one, which writes it anew")
