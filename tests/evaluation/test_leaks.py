"""Leaks: exact, near-duplicate, or thirteen consecutive words."""

import json
from pathlib import Path

import pytest

from instruct_lit.datasets.near_duplicates import jaccard, shingles
from instruct_lit.errors import ConfigError
from instruct_lit.evaluation.leaks import Leak, find_leaks, question

LONG = "The committee will meet on the second Monday of every month in the old library building near the harbour."


def test_questions() -> None:
    assert (
        question({"instruction": "Add.", "input": "1 2"}) == "Add.\n1 2"
        and question({"instruction": "Add."}) == "Add.\n"
    )
    assert question({"instruction": "And?", "history": [["Add.", "3"]]}) == "Add.\n3\nAnd?\n"


def test_case_punctuation_and_white_space_do_not_matter() -> None:
    assert find_leaks(["Nothing.", "Name a  COLOUR"], ["name a colour!", "Name a shape."], near=False) == [
        Leak(0, 1, "exact", 1.0)
    ]


def test_thirteen_words_of_a_longer_text() -> None:
    item = "Summarise: " + " ".join(LONG.split()[2:16]) + " and so on"
    found = find_leaks(["short", f"{LONG} Nobody else may come."], [item], near=False)
    assert [(leak.item, leak.train, leak.kind) for leak in found] == [(0, 1, "ngram")]
    twelve = "Summarise: " + " ".join(LONG.split()[2:14])
    assert find_leaks([LONG], [twelve], near=False) == []


def test_near_duplicates_by_minhash() -> None:
    pytest.importorskip("datasketch")
    changed = LONG.replace("harbour", "port")
    (leak,) = find_leaks(["Name a colour.", changed], [LONG, "Name a river in Peru."])
    assert (leak.item, leak.train, leak.kind) == (0, 1, "near")
    assert leak.similarity == pytest.approx(jaccard(shingles(changed), shingles(LONG))) and 0.8 <= leak.similarity < 1
    assert find_leaks(["Name a mountain in Peru."], ["Name a river in Peru."]) == []


def test_the_strongest_kind_is_kept_and_empty_texts_are_no_leak() -> None:
    pytest.importorskip("datasketch")
    assert [leak.kind for leak in find_leaks([LONG.replace("harbour", "port"), LONG], [LONG])] == ["exact"]
    assert find_leaks(["", "?!"], ["", "word"]) == find_leaks([""], ["", "?!"]) == []


def test_the_book_s_own_split_has_leaks(shared_data: Path) -> None:
    """Of its 110 test records two ask word for word what a training record asks."""
    pytest.importorskip("datasketch")
    texts = [question(record) for record in json.loads((shared_data / "instructions" / "book-1100.json").read_text())]
    found = find_leaks(texts[:935], texts[935:1045])
    assert sum(leak.kind == "exact" for leak in found) == 2
    assert any(leak.kind == "near" and "left a message" in texts[leak.train] for leak in found)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasketch", None)
    with pytest.raises(ConfigError, match=r"leaks.near=true: needs datasketch; pip install -e '.\[filters\]'"):
        find_leaks(["a"], ["a"])
    assert len(find_leaks(["a"], ["a"], near=False)) == 1
