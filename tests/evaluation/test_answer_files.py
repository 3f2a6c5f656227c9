"""Files of responses of any origin."""

import json
from pathlib import Path

import pytest

from instruct_lit.core.generation.responses import write_jsonl
from instruct_lit.errors import DataError
from instruct_lit.evaluation.answer_files import read_jsonl, read_metrics, read_responses


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


@pytest.mark.parametrize("content", [b"", b'{"val/loss": 1', b"[1]", b"\x00\x00", b"\xff"])
def test_damaged_metrics_are_named(tmp_path: Path, content: bytes) -> None:
    assert read_metrics(tmp_path) == {}
    (tmp_path / "metrics.json").write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_metrics(tmp_path)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'metrics.json'}: damaged (")
    assert message.endswith("); give another run, or resume this one, which writes it anew")
