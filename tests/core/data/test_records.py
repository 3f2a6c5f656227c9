"""Records out of files, and every way in which a file or a record can be wrong."""

import csv
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from instruct_lit.core.data.example import Example, to_example
from instruct_lit.core.data.records import FileSource, read_records, without_duplicates
from instruct_lit.errors import DataError

RECORDS = [
    {"instruction": "Say é.", "input": "", "output": "é", "topic": "letters"},
    {"instruction": "Two\nlines", "input": 'x, "y"', "output": "🙂"},
]


def examples(path: Path) -> list[Example]:
    return [to_example(record, place) for place, record in read_records(path)]


def as_json(path: Path) -> None:
    path.write_text(json.dumps(RECORDS, indent=1), encoding="utf-8")


def as_jsonl(path: Path) -> None:
    path.write_text("\n\n".join(json.dumps(r, ensure_ascii=False) for r in RECORDS) + "\n", encoding="utf-8-sig")


def as_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["instruction", "input", "output", "topic"], restval="")
        writer.writeheader()
        writer.writerows(RECORDS)


def as_parquet(path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)


@pytest.mark.parametrize("write", [as_json, as_jsonl, as_csv, as_parquet])
def test_every_format_gives_the_same_examples(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / f"records.{write.__name__.removeprefix('as_')}"
    write(path)
    one, two = examples(path)
    assert (one.instruction, one.input, one.output) == ("Say é.", "", "é")
    assert (two.instruction, two.input, two.output) == ("Two\nlines", 'x, "y"', "🙂")
    assert one.extra["topic"] == "letters"


def test_json_larger_than_the_window_is_read_piece_by_piece(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    path.write_text(json.dumps([{"instruction": f"i{n}", "output": "x" * 3000} for n in range(1500)]))
    found = examples(path)
    assert len(found) == 1500 and found[-1].instruction == "i1499"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"instruction": "a"}', "not a JSON array of records; rename a file with one record per line to .jsonl"),
        ('{"data": []}', "not a JSON array of records; rename a file with one record per line to .jsonl"),
        (
            "version https://git-lfs.github.com/spec/v1\n",
            "pointer of Git LFS and not the file itself; fetch it with `git l",
        ),
        ('[{"instruction": "a", "output": "b"}', "record 1: expected ',' or ']'"),
        ('[{"instruction": "a", "output": ]', "record 0: invalid JSON"),
        ('[{"instruction": "a", "output": "b"}] x', "text after the end of the array"),
        ("", "not a JSON array of records"),
    ],
)
def test_broken_json_names_file_and_record(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "records.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        list(read_records(path))
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_a_broken_line_of_jsonl_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"instruction": "a", "output": "b"}\n{oops}\n')
    found = [record for _, record in read_records(path)]
    assert isinstance(found[1], DataError) and f"{path}, line 2: invalid JSON" in str(found[1])


@pytest.mark.parametrize(
    ("value", "message"), [("1" * 5000, "Exceeds the limit"), ("[" * 100_000, "maximum recursion depth exceeded")]
)
def test_json_beyond_python_limits_is_an_error_like_any_other(tmp_path: Path, value: str, message: str) -> None:
    text = '{"instruction": "a", "output": "b", "x": ' + value + "}"
    (tmp_path / "r.json").write_text(f"[{text}]")
    with pytest.raises(DataError, match=rf"r.json, record 0: {message}"):
        list(read_records(tmp_path / "r.json"))
    (tmp_path / "r.jsonl").write_text(text)
    ((_, found),) = read_records(tmp_path / "r.jsonl")
    assert isinstance(found, DataError) and f"r.jsonl, line 1: {message}" in str(found)


def test_a_parquet_file_with_damaged_pages_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    as_parquet(path)
    whole = bytearray(path.read_bytes())
    whole[4:60] = b"\xff" * 56  # the first column's pages
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"r.parquet, record 0: invalid parquet file"):
        list(read_records(path))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"unsupported suffix '.txt'; allowed are .json, .jsonl, .ndjson, .csv, .tsv, .parquet, .arrow, .gz",
    ):
        list(read_records(tmp_path / "a.txt"))
    with pytest.raises(DataError, match=r"nowhere.json: cannot be read \(No such file"):
        list(read_records(tmp_path / "nowhere.json"))
    (tmp_path / "latin.jsonl").write_bytes('{"instruction": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.jsonl: invalid UTF-8 .*; convert the file to UTF-8"):
        list(read_records(tmp_path / "latin.jsonl"))
    (tmp_path / "no.parquet").write_bytes(b"PAR1")
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=r"no.parquet, record 0: invalid parquet file"):
        list(read_records(tmp_path / "no.parquet"))


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
    with pytest.raises(
        DataError, match="no file ending in .json, .jsonl, .ndjson, .csv, .tsv, .parquet, .arrow, .gz, .zst in this"
    ):
        list(FileSource(str(tmp_path)))


@pytest.mark.parametrize(("name", "text"), [("r.jsonl", ""), ("r.jsonl", "\n\n"), ("r.json", "[]")])
def test_a_file_without_records_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name}: no records in it$"):
        list(FileSource(str(tmp_path / name)))


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
    folder = tmp_path / "a long name that a folder may have, and the path of a file in it with that name"
    folder.mkdir()
    source = FileSource(str(write(folder / "r.json", *records)), on_bad_record="skip")
    assert list(source) == [] and len(source.notes.n_bad) == 21
    assert source.notes.n_bad["other reasons"] == 44 and source.notes.n_bad.total() == 64


def test_a_column_that_no_record_has_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", GOOD, {"instruction": "c", "output": "d", "context": None})
    assert len(list(FileSource(str(path), {"input": "context"}))) == 2
    with pytest.raises(DataError, match=r"r.json: no record has the field about, prompt of data.columns; correct the"):
        list(FileSource(str(path), {"input": "about", "system": "prompt", "output": "output"}))
