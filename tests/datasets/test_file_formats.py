"""CSV and parquet: every cell and every row is read or refused, in bounded memory."""

import datetime
import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from instruct_lit.core.data.records import FileSource, read_records
from instruct_lit.errors import DataError


def csv_of(path: Path, text: str) -> Path:
    file = path / "r.csv"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("row", "n"), [("Name three colours,,Red, green, and blue", 5), ("Name a colour,", 2), ("alone", 1)]
)
def test_a_row_with_another_number_of_cells_than_the_header_is_a_bad_record(tmp_path: Path, row: str, n: int) -> None:
    file = csv_of(tmp_path, f'instruction,input,output\na,,b\n{row}\n\n"c, d",,"e\nf"\n')
    (_, one), (place, bad), (_, last) = read_records(file)
    assert one == {"instruction": "a", "input": "", "output": "b"} and last["output"] == "e\nf"
    assert place == f"{file}, record 2" and isinstance(bad, DataError)
    assert f"record 2 (line 3): {n} cells, but the header has 3 (instruction, input, output)" in str(bad)
    remedy = "put a text that contains a comma in double quotes" if n > 3 else "an empty cell needs its comma"
    with pytest.raises(DataError, match=remedy):
        list(FileSource(str(file)))


def test_a_cell_in_a_column_without_a_name_is_not_lost(tmp_path: Path) -> None:
    source = FileSource(str(csv_of(tmp_path, "instruction,output,\na,b,\nc,d, e\n")), on_bad_record="skip")
    assert [example.output for example in source] == ["b"]
    bad = str(list(read_records(source.paths[0]))[1][1])
    assert "record 2 (line 3): 3 cells, but the header has 2 (instruction, output, ); put a text that contains" in bad
    index = FileSource(str(csv_of(tmp_path, ",instruction,output\n0,a,b\n")))  # as pandas writes a table
    assert [example.output for example in index] == ["b"]
    assert index.notes.lines() == ["fields that are not trained on: ''"]


@pytest.mark.parametrize(
    ("name", "place", "form"), [("r.json", "record 1", "[{}, {}]"), ("r.jsonl", "line 2", "{}\n{}\n")]
)
@pytest.mark.parametrize(
    "bad", ['{"output": "a", "output": "b"}', '{"messages": [{"role": "user", "role": "assistant"}]}']
)
def test_a_key_that_stands_twice_in_an_object_is_refused(
    tmp_path: Path, name: str, place: str, form: str, bad: str
) -> None:
    (tmp_path / name).write_text(form.format('{"instruction": "x", "output": "y"}', bad))
    with pytest.raises(DataError, match=rf"{name}, {place}: the key '(output|role)' stands more than once"):
        list(FileSource(str(tmp_path / name)))


def test_a_header_that_names_a_column_twice_is_refused(tmp_path: Path) -> None:
    file = csv_of(tmp_path, "instruction,output,output\na,b,c\n")
    with gzip.open(tmp_path / "s.csv.gz", "wb") as packed:
        packed.write(file.read_bytes())
    for path in (file, tmp_path / "s.csv.gz"):
        with pytest.raises(DataError, match=f"^{path}: the header has 'output' more than once; rename a column"):
            list(read_records(path))


def write_table(table: Any, path: Path) -> None:
    """A file of parquet or Arrow, by its suffix."""
    from pyarrow import ipc, parquet

    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        with ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_table_with_two_columns_of_one_name_is_refused(tmp_path: Path, suffix: str) -> None:
    pa = pytest.importorskip("pyarrow")
    table, path = pa.table([["a"], ["b"], ["c"]], names=["instruction", "output", "output"]), tmp_path / f"r{suffix}"
    write_table(table, path)
    with pytest.raises(DataError, match="the header has 'output' more than once; rename a column"):
        list(read_records(path))


def test_one_record_per_line_is_read_from_a_json_file_too(tmp_path: Path) -> None:
    lines = ['{"instruction": "a", "output": "b"}', "", '{"instruction": "c", "output": "d", "output": "e"}', "{oops}"]
    (tmp_path / "r.json").write_bytes("\ufeff\r\n".encode() + "\r\n".join(lines).encode())
    (place, one), (_, twice), (_, bad) = read_records(tmp_path / "r.json")
    assert (place, one) == (f"{tmp_path / 'r.json'}, line 2", {"instruction": "a", "output": "b"})
    assert "line 4: the key 'output' stands more than once" in str(twice) and "line 5: invalid JSON" in str(bad)
    (tmp_path / "r.json").write_text('{\n "a": 1\n}\n{"b": 2}\n')
    with pytest.raises(DataError, match=r"r.json: invalid JSON \(Extra data\)"):
        list(read_records(tmp_path / "r.json"))


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_a_file_with_another_separator_is_refused(tmp_path: Path, separator: str) -> None:
    with pytest.raises(DataError, match=r"with '.+' in its name; separate the columns with commas in .csv, with tabs"):
        list(read_records(csv_of(tmp_path, separator.join(("instruction", "output\na", "b\n")))))


def test_a_timestamp_that_python_has_no_type_for_is_no_obstacle(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    far = pa.array([253402300800000000 * 2, None], pa.timestamp("us"))  # beyond the year 9999
    near = pa.array([datetime.datetime(2026, 1, 2), None], pa.timestamp("us"))
    table = pa.table({
        "instruction": ["a", "b"], "output": ["c", "d"], "far": far, "near": near,
        "nested": pa.StructArray.from_arrays([far], ["when"]),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "r.parquet")
    one, two = FileSource(str(tmp_path / "r.parquet"))
    assert (one.instruction, one.output, two.instruction) == ("a", "c", "b")
    assert one.extra["far"] == "<timestamp[us]>" and one.extra["near"] == datetime.datetime(2026, 1, 2)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.slow
def test_a_small_parquet_of_gigabytes_is_read_in_bounded_memory(tmp_path: Path, nested: bool) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = pa.array(["x" * 1_000_000, "user", "y", "assistant"])
    first = pa.DictionaryArray.from_arrays(pa.array([0, 2] * 2000, pa.int32()), texts)
    if nested:
        roles = pa.DictionaryArray.from_arrays(pa.array([1, 3] * 2000, pa.int32()), texts)
        turns = pa.StructArray.from_arrays([roles, first], ["role", "content"])
        table = pa.table({"messages": pa.ListArray.from_arrays(pa.array(range(0, 4001, 2), pa.int32()), turns)})
    else:
        table = pa.table({"instruction": first, "output": first})
    pq.write_table(table, tmp_path / "r.parquet", store_schema=False, compression="zstd")
    assert (tmp_path / "r.parquet").stat().st_size < 20_000
    tracemalloc.start()
    n = sum(1 for _ in FileSource(str(tmp_path / "r.parquet")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == (2000 if nested else 4000) and peak < 30e6 and pa.total_allocated_bytes() < 200e6


def test_a_row_group_above_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"instruction": ["a", "b"], "output": ["c", "d"]}), tmp_path / "r.parquet")
    monkeypatch.setattr("instruct_lit.datasets.file_formats.MAX_ROW_GROUP", 10)
    with pytest.raises(DataError, match=r"row group 0 has \d+ bytes uncompressed; at most 10 are read; write the file"):
        list(read_records(tmp_path / "r.parquet"))


def test_tables_with_tabs_and_lines_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "r.tsv").write_text("instruction\toutput\na, b\tc\n")
    (tmp_path / "r.ndjson").write_text('{"instruction": "a", "output": "b"}\n')
    one, two = FileSource(str(tmp_path))
    assert (two.instruction, two.output) == ("a, b", "c") and one.output == "b"


def test_the_only_list_of_an_object_is_found(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text('{"version": 1, "tags": ["x"], "data": [{"instruction": "a", "output": "b"}]}')
    assert list(read_records(file)) == [(f"{file}, data[0]", {"instruction": "a", "output": "b"})]
    file.write_text('{"train": [{"a": 1}], "test": [{"a": 1}]}')
    with pytest.raises(
        DataError, match=r"not a JSON array of records; name one of its lists \(train, test\) as data.key"
    ):
        list(read_records(file))


def test_what_all_records_of_an_object_share_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"system": "Hm.", "data": [{"instruction": "a", "output": "b"}]}')
    with pytest.raises(DataError, match=r"a.json: 'system' stands beside the records in 'data'; write it into every"):
        list(read_records(tmp_path / "a.json"))


@pytest.mark.parametrize("streamed", [True, False])
def test_arrow_as_datasets_saves_it(tmp_path: Path, streamed: bool) -> None:
    pa, ipc = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.ipc")
    table = pa.table({"instruction": ["a", "b"], "output": ["c", "d"]})
    with (ipc.new_stream if streamed else ipc.new_file)(tmp_path / "r.arrow", table.schema) as writer:
        writer.write_table(table)
    assert [example.output for example in FileSource(str(tmp_path / "r.arrow"))] == ["c", "d"]
    (tmp_path / "r.arrow").write_bytes(b"ARROW1 and nothing else")
    with pytest.raises(DataError, match="record 0: invalid Arrow file"):
        list(read_records(tmp_path / "r.arrow"))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_value_of_a_table_that_cannot_be_read_is_a_bad_record(tmp_path: Path, suffix: str) -> None:
    pa = pytest.importorskip("pyarrow")
    broken = pa.array([b"c", b"\xff", b"d"]).view(pa.string())
    table, path = pa.table({"instruction": ["a", "b", "e"], "output": broken}), tmp_path / f"r{suffix}"
    write_table(table, path)
    with pytest.raises(DataError, match="record 1: a value cannot be read"):
        list(FileSource(str(path)))
    assert [example.output for example in FileSource(str(path), on_bad_record="skip")] == ["c", "d"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_are_read_by_the_suffix_before(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = b'{"instruction": "a", "output": "b"}\n{\n'
    file = tmp_path / f"r.jsonl{suffix}"
    if suffix == ".gz":
        file.write_bytes(gzip.compress(text))
    else:
        pa = pytest.importorskip("pyarrow")
        with pa.output_stream(str(file), compression="zstd") as stream:
            stream.write(text)
    (place, record), (_, bad) = read_records(file)
    assert place == f"{file}, line 1" and record["output"] == "b"
    assert str(bad).startswith(f"{file}, line 2: invalid JSON")
    monkeypatch.setattr("instruct_lit.datasets.file_formats.MAX_UNPACKED", 10)
    with pytest.raises(DataError, match="unpacks to more than 10 bytes"):
        list(read_records(file))
    file.write_bytes(file.read_bytes()[:12])
    with pytest.raises(DataError, match=r"cannot be unpacked|not a JSON|no record|Truncated"):
        list(read_records(file))
