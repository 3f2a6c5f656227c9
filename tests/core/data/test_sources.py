"""Sources of files: what they yield, skip and count, and when their fingerprint changes."""

import itertools
import json
from pathlib import Path

import pytest

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.records import FileSource, without_duplicates
from instruct_lit.errors import DataError


def write(path: Path, *records: object) -> Path:
    path.write_text(json.dumps(list(records)))
    return path


GOOD = {"instruction": "a", "output": "b"}
BAD = {"instruction": "a", "output": ""}


def test_files_and_folders_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "2.json", {"instruction": "2", "output": "x"})
    write(folder / "1.json", {"instruction": "1", "output": "x"})
    (folder / "notes.txt").write_text("no records")
    last = write(tmp_path / "z.json", {"instruction": "3", "output": "x"})
    assert [e.instruction for e in FileSource([str(folder), str(last)])] == ["1", "2", "3"]


def test_a_bad_record_is_an_error_with_its_place_or_skipped_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", GOOD, BAD, GOOD)
    with pytest.raises(DataError, match=r"r.json, record 1: 'output' is empty"):
        list(FileSource(str(path)))
    source = FileSource(str(path), on_bad_record="skip")
    assert len(list(source)) == 2 and source.notes.n_bad.total() == 1
    assert len(list(source)) == 2 and source.notes.n_bad.total() == 1  # counted anew each time


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        list(FileSource(str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match="no file ending in .json, .jsonl, .csv, .parquet in this folder"):
        list(FileSource(str(tmp_path)))


def test_the_fingerprint_follows_content_and_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", GOOD)
    first = FileSource(str(path)).fingerprint()
    assert FileSource(str(path)).fingerprint() == first
    assert FileSource(str(path), {"instruction": "q"}).fingerprint() != first
    write(path, GOOD, GOOD)
    assert FileSource(str(path)).fingerprint() != first


def test_exact_duplicates_are_dropped_and_counted() -> None:
    examples = [Example("a", "b"), Example("a", "b", "c"), Example("a", "b"), Example("ab", "")]
    counts: dict[str, int] = {}
    assert list(without_duplicates(examples, counts)) == [examples[0], examples[1], examples[3]]
    assert counts == {"n_duplicates": 1}


def test_bad_records_are_listed_by_reason_with_first_places_and_warned_of(tmp_path: Path) -> None:
    numbers = [{"instruction": "a", "output": n} for n in range(5)]
    path = write(tmp_path / "r.json", GOOD, BAD, {**GOOD, "topic": "x", "\x1b[2J": 1}, *numbers, "text")
    source = FileSource(str(path), on_bad_record="skip")
    assert len(list(source)) == 2
    lines = source.notes.lines()
    assert lines == [
        "warning: 7 of 9 records (77.8%) are bad and were skipped:",
        f"  5 × 'output' must be text; first: {path}, record 3, {path}, record 4, {path}, record 5",
        f"  1 × 'output' is empty; first: {path}, record 1",
        f"  1 × a record must be a mapping of fields; first: {path}, record 8",
        "fields that are not trained on: topic, \\x1b[2J",
    ]
    few = FileSource(str(write(tmp_path / "few.json", *[GOOD] * 19, BAD)), on_bad_record="skip")
    assert len(list(few)) == 19 and few.notes.lines()[0] == "1 of 20 records (5.0%) are bad and were skipped:"


def test_no_more_reasons_are_kept_than_can_be_read(tmp_path: Path) -> None:
    words = ["".join(letters) for letters in itertools.product("abcdefgh", repeat=2)]
    records = [{"conversations": [{"from": word, "value": "x"}]} for word in words]
    source = FileSource(str(write(tmp_path / "r.json", *records)), on_bad_record="skip")
    assert list(source) == [] and len(source.notes.n_bad) == 21
    assert source.notes.n_bad["other reasons"] == 44 and source.notes.n_bad.total() == 64
