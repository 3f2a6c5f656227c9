"""Checks of responses: each kind by hand, what is refused at reading, and that no check hangs."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instruct_lit.core.data.example import to_example
from instruct_lit.datasets.demo import DemoSource
from instruct_lit.errors import ConfigError, DataError
from instruct_lit.evaluation import install
from instruct_lit.evaluation.answer_files import read_responses
from instruct_lit.evaluation.checks import KINDS, by_kind, check_record, outcomes
from instruct_lit.evaluation.comparison import compare_rows
from instruct_lit.evaluation.generation_quality import GenerationQuality
from instruct_lit.evaluation.metrics import METRICS
from instruct_lit.evaluation.scores import score_rows

SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"type": "string", "pattern": "^x+$"}}}


def row(response: str, *checks: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "id": 0, "instruction": "q", "input": "", "output": "a", "response": response, "checks": list(checks), **fields
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "value", "passing", "failing"),
    [
        ("contains", ["Paris", "France"], "Paris, France", "Paris, Texas"),
        ("contains", "Paris", "in Paris.", "in paris."),
        ("forbidden", ["very", "C++"], "everything in C", "VERY good"),
        ("forbidden", "C++", "C+", "in C++."),
        ("forbidden", "对不起", "不客气", "我对不起你"),
        ("forbidden", "AI", "我是AIR助手", "我是ai助手"),
        ("one_of", ["yes", "no"], " yes\n", "yes."),
        ("ends_with", "Bye.", "So. Bye.\n", "Bye. Now"),
        ("regex", r"^\p{Lu}+$", "ÄB", "Äb"),
        ("json_schema", SCHEMA, '{"a": "xx"}', '{"a": "y"}'),
        ("json_schema", {"type": "integer"}, "3", "three"),
        ("number", [3, 4], "It is 2, no, 3.50.", "3 or 5"),
        ("number", [None, 0], "-1,000", "none"),
        ("n_words", [2, 3], "two words", "one"),
        ("n_words", [2, None], "a b c d", ""),
        ("n_words", [4, 7], "我喜欢吃苹果。", "我喜欢吃苹果和香蕉。"),
        ("language", "de", "Das ist ein ganz gewöhnlicher deutscher Satz.", "This is an ordinary English sentence."),
        ("language", "en", "This is an ordinary English sentence.", "123"),
    ],
)
def test_each_kind_by_hand(kind: str, value: Any, passing: str, failing: str) -> None:
    if kind == "json_schema":
        pytest.importorskip("jsonschema_rs")
    check_record([{kind: value}], "here")
    assert KINDS[kind](passing, value) and not KINDS[kind](failing, value)


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ("contains", "'checks' must be a list of at most 50 checks, found 'contains'"),
        ([{"n_words": [1, 2]}] * 51, "at most 50"),
        ([{"begins_with": "a"}], "one of contains, forbidden, one_of"),
        ([{"contains": "a", "regex": "a"}], "one of contains"),
        ([{"function": True}], "one of contains"),
        ([{"contains": []}], "check contains: found []; give a text or a list of texts"),
        ([{"n_words": [3, 2]}], "[lowest, highest], null for no bound"),
        ([{"n_words": [True, 2]}], "[lowest, highest]"),
        ([{"language": "English"}], "an ISO 639-1 code"),
        ([{"regex": "("}], "check regex: invalid value (missing )"),
        ([{"regex": "(?:(?:a{9000}){9000}){9000}"}], "few repetitions"),
        ([{"regex": "a" * 1001}], "at most 1000 characters"),
        ([{"json_schema": {"type": "strin"}}], "check json_schema: invalid value"),
        ([{"json_schema": {"allOf": [{"$ref": "http://127.0.0.1/x"}]}}], "a JSON schema without $ref"),
        ([{"json_schema": {"enum": ["a" * 10_001]}}], "give a JSON schema"),
    ],
)
def test_an_invalid_check_is_refused_when_the_data_are_read(checks: Any, message: str) -> None:
    pytest.importorskip("jsonschema_rs")
    install()
    with pytest.raises(DataError) as error:
        to_example({"instruction": "q", "output": "a", "checks": checks}, "x.json, record 7")
    assert str(error.value).startswith("x.json, record 7: ") and message in str(error.value)
    assert len(str(error.value)) < 300


def test_a_file_of_responses_is_checked_as_well(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text('{"instruction": "q", "output": "a", "response": "a", "checks": [{"contain": "a"}]}')
    with pytest.raises(DataError, match=r"r.jsonl, line 1: check .*contain"):
        read_responses(file, "response")
    file.write_text('{"instruction": "q", "output": "a", "response": "a", "checks": [], "check_function": true}')
    assert "check_function" not in read_responses(file, "response")[0]  # the verdict is the command's own alone


def test_no_pattern_hangs() -> None:
    pytest.importorskip("jsonschema_rs")
    text = "a" * 20_000 + "b"
    hostile = row(text, {"regex": "(a+)+$"}, {"json_schema": {"type": "string", "pattern": "(a+)+$"}})
    start = time.perf_counter()
    assert outcomes(hostile) == {"regex": False, "json_schema": False}
    assert outcomes(row(f'"{text}"', *hostile["checks"]))["json_schema"] is False
    assert outcomes(row("[" * 100_000, {"json_schema": {}})) == {"json_schema": False}
    assert time.perf_counter() - start < 20


def test_a_response_passes_strictly_and_rows_without_checks_do_not_count() -> None:
    both = [{"n_words": [1, 1]}, {"contains": "b"}, {"contains": "c"}]
    rows = [row("bc", *both), row("b", *both), row("b c", both[1]), row("zz")]
    assert [METRICS["checks"](r) for r in rows[:3]] == [1, 0, 1]
    found = score_rows(rows, ["checks", "exact_match"], ["input"])
    assert (found["metrics"]["checks"]["mean"], found["metrics"]["checks"]["n"]) == (pytest.approx(2 / 3), 3)
    assert {kind: (v["mean"], v["n"]) for kind, v in found["checks"].items()} == {
        "n_words": (1, 2), "contains": (pytest.approx(2 / 3), 3)
    }  # fmt: skip
    assert "checks" not in rows[3]["scores"] and found["by"]["input"]["without input"]["checks"]["n"] == 3
    assert "checks" not in score_rows([row("zz"), row("y")], ["exact_match", "checks"])["metrics"]
    by_function = [row("x", check_function=True), row("x", check_function=False)]
    assert by_kind(by_function)["function"]["mean"] == 0.5
    _, compared = compare_rows([row("b", both[1]), row("x")], [row("c", both[1]), row("x")], ["checks", "exact_match"])
    assert compared["differences"]["checks"]["mean"] == 1 and compared["differences"]["checks"]["n"] == 1


def test_the_demo_passes_its_own_checks_and_stays_what_it_was() -> None:
    plain, checked = DemoSource(400), DemoSource(400, checks=True)
    assert plain.fingerprint() == "2bbcd2f2fc7220f7" and checked.fingerprint() != plain.fingerprint()
    kinds = set()
    for one, other in zip(plain, checked, strict=True):
        assert one.digest == other.digest and "checks" not in one.extra
        check_record(other.extra["checks"], "demo")
        verdicts = outcomes({"response": one.output, **other.extra})
        assert all(verdicts.values()) and not all(outcomes({"response": "a, b; c d e", **other.extra}).values())
        kinds |= set(verdicts)
    assert kinds == {"n_words", "number", "one_of", "regex", "contains", "ends_with"}


def test_training_monitors_the_share_that_passes(make_data: Callable, make_tuner: Callable, fit: Callable) -> None:
    quality = GenerationQuality(["checks"], n_examples=4, max_new_tokens=5)
    with pytest.raises(ConfigError, match="no record of the validation sample has checks"):
        fit(make_tuner(), make_data(), quality, limit_val_batches=1.0)
