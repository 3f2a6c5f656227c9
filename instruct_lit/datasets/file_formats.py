"""Readers of .json, .csv, .tsv, .parquet, .arrow and compressed files, one record at a time in bounded memory."""

import csv
import gzip
import json
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from instruct_lit.core.data.example import FIELDS, listed
from instruct_lit.core.data.records import READERS as CORE_READERS
from instruct_lit.core.data.records import TO_LINES, UNREADABLE, json_object, read_records, unreadable
from instruct_lit.errors import DataError
from instruct_lit.optional_imports import load

Reader = Callable[[Path], Iterator[tuple[str, Any]]]
_CHUNK = 1 << 20  # characters of a JSON file that are read at once
_DECODER = json.JSONDecoder(object_pairs_hook=json_object)
_SPACE = re.compile(r"[ \t\r\n]*")
MAX_CELL = 1 << 30  # characters
MAX_UNPACKED = 64 << 30  # bytes of a compressed file
BATCH_ROWS = 128
MAX_ROW_GROUP, MAX_VALUES = 4 << 30, 100_000_000  # bytes, and values of a column


def read_json(path: Path, key: str | None = None) -> Iterator[tuple[str, Any]]:
    """Records of a JSON array, decoded one by one from a sliding window, of the list in an object, or one a line.

    Args:
        key: of the list in an object; by default its only list of mappings.

    Not by ijson, which refuses integers above 64 bits, and hides a lone surrogate from `checked_text` as `?`.
    """
    with path.open(encoding="utf-8-sig") as file:
        text, position, number = file.read(_CHUNK), 0, 0

        def next_character() -> str:
            """Move past white space and return the character there, an empty string at the end."""
            nonlocal text, position
            while text:
                position = _SPACE.match(text, position).end()  # type: ignore[union-attr]
                if position < len(text):
                    return text[position]
                text, position = file.read(_CHUNK), 0
            return ""

        if (first := next_character()) == "{":
            file.seek(0)
            lines = (line for line in file if line.strip())
            if _is_object(next(lines), following=next(lines, "")):
                yield from CORE_READERS[".jsonl"](path)
                return
            file.seek(0)
            try:
                content = json.load(file, object_pairs_hook=json_object)
            except UNREADABLE as error:
                raise unreadable(str(path), error) from error
            yield from _list_in(path, content, key)
            return
        if first != "[":
            raise DataError(f"{path}: not a JSON array of records; {TO_LINES}")
        while True:
            position += 1  # behind the bracket, or the comma
            if next_character() == "]" and not number:
                break
            place = f"{path}, record {number}"
            while True:
                try:
                    record, position = _DECODER.raw_decode(text, position)
                    break
                except UNREADABLE as error:
                    more = file.read(max(_CHUNK, len(text))) if isinstance(error, json.JSONDecodeError) else ""
                    if not more:
                        raise unreadable(place, error) from error
                    text, position = text[position:] + more, 0
            yield place, record
            number += 1
            if (character := next_character()) == "]":
                break
            if character != ",":
                raise DataError(f"{path}, record {number}: expected ',' or ']'; is the file complete?")
        position += 1
        if next_character():
            raise DataError(f"{path}: text after the end of the array")


def _is_object(line: str, following: str) -> bool:
    """Whether a line is a whole JSON object before another line: so a .json file with one record per line begins."""
    with suppress(*UNREADABLE):
        return bool(following) and isinstance(json.loads(line), dict)
    return False


def read_csv(path: Path, delimiter: str = ",", has_header: bool = True) -> Iterator[tuple[str, Any]]:
    """Records of a CSV file whose first row is the header; a row with too many or too few cells is a DataError.

    Without a header the fields are `1`, `2`, … as many as in the first row.
    """
    csv.field_size_limit(MAX_CELL)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(rows, [])
            if not has_header:
                file.seek(0)
                rows = csv.reader(file, delimiter=delimiter, strict=True)
                header = [str(n) for n in range(1, len(header) + 1)]
            _refuse_repeated(path, header)
            if has_header and len(header) == 1 and (other := re.search("[,;|\t]", header[0])):
                remedy = "separate the columns with commas in .csv, with tabs in .tsv"
                raise DataError(f"{path}: a single column {header[0]!r:.80}, with {other[0]!r} in its name; {remedy}")
            for number, cells in enumerate((row for row in rows if row), start=1):
                place = f"{path}, record {number}"
                record = dict(zip(header, cells, strict=False))
                if len(cells) == len(header) and (header[0] == "" or not record.get("")):  # the first may be an index
                    yield place, record
                else:
                    quote, add = "put a text that contains a comma in double quotes", "an empty cell needs its comma"
                    remedy = quote if len(cells) >= len(header) else add
                    n_named = len([*filter(None, header)])
                    found = f"{len(cells)} cells, but the header has {n_named} ({', '.join(header)})"
                    yield place, DataError(f"{place} (line {rows.line_num}): {found}; {remedy}")
        except csv.Error as error:
            raise DataError(f"{path}, line {rows.line_num}: invalid CSV ({error})") from error


def _refuse_repeated(path: Path, columns: Sequence[str]) -> None:
    """Raise DataError for columns of one name: all but the last of them would be lost."""
    repeated = [name for name, n in Counter(columns).items() if n > 1]
    if repeated:
        raise DataError(f"{path}: the header has {repeated[0]!r} more than once; rename a column")


def read_table(path: Path, form: str, batches_of: Callable[[Path], Iterator[Any]]) -> Iterator[tuple[str, Any]]:
    """Records of batches of pyarrow, one at a time. Raises: DataError, which names the form, for an invalid file."""
    lib = load("pyarrow.lib", str(path), "parquet")
    number = 0
    try:
        for batch in batches_of(path):
            for values in zip(*batch.columns, strict=True):
                place = f"{path}, record {number}"
                try:
                    yield place, {n: _python(value) for n, value in zip(batch.schema.names, values, strict=True)}
                except (ValueError, OverflowError) as error:
                    yield place, DataError(f"{place}: a value cannot be read ({error})")
                number += 1
    except (ValueError, OSError, OverflowError, lib.ArrowException) as error:
        raise DataError(f"{path}, record {number}: invalid {form} file ({error})") from error


def _parquet_batches(path: Path) -> Iterator[Any]:
    """The rows of a parquet file: memory is bounded by the distinct texts, however often each occurs.

    Raises: DataError for a row group above `MAX_ROW_GROUP` bytes or a column of it above `MAX_VALUES` values.
    """
    parquet = load("pyarrow.parquet", str(path), "parquet")
    with parquet.ParquetFile(path) as file:
        _check_row_groups(path, file.metadata)
        _refuse_repeated(path, file.schema_arrow.names)
        leaves = [file.schema.column(i) for i in range(len(file.schema))]
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    with parquet.ParquetFile(path, read_dictionary=texts) as file:
        yield from file.iter_batches(batch_size=BATCH_ROWS)


def _arrow_batches(path: Path) -> Iterator[Any]:
    """The rows of a file or a stream of Arrow, as `datasets` saves them."""
    ipc = load("pyarrow.ipc", str(path), "parquet")
    with path.open("rb") as file:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        reader = ipc.open_file(file) if is_file else ipc.open_stream(file)
        _refuse_repeated(path, reader.schema.names)
        yield from map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader


def _check_row_groups(path: Path, metadata: Any) -> None:
    """Raise DataError when a row group is too large to be read."""
    for group in range(metadata.num_row_groups):
        about = metadata.row_group(group)
        columns = [about.column(i) for i in range(about.num_columns)]
        for found, limit, what in (
            (sum(column.total_uncompressed_size for column in columns), MAX_ROW_GROUP, "bytes uncompressed"),
            (max((column.num_values for column in columns), default=0), MAX_VALUES, "values in a column"),
        ):
            if found > limit:
                raise DataError(
                    f"{path}: row group {group} has {found:,} {what}; at most {limit:,} are read; write the file with "
                    "smaller row groups (row_group_size=)"
                )


def _python(value: Any) -> Any:
    """An Arrow value as a Python object; a point in time that Python has none for, as text."""
    try:
        return value.as_py()
    except (ValueError, OverflowError):
        if re.search("timestamp|date|time|duration", str(value.type)):
            return f"<{value.type}>"
        raise


def _list_in(path: Path, whole: dict[str, Any], key: str | None) -> Iterator[tuple[str, Any]]:
    """The records in a list in an object, which is read whole: under a key, or the only list of mappings.

    Without a key an object with a list of turns is itself a record.
    """
    if key is None and any(_is_list_of_turns(value) for value in whole.values()):
        yield f"{path}, record 0", whole
        return
    lists = [name for name, value in whole.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    lists = [name for name in lists if key in (None, name)]
    if len(lists) != 1:
        found = "not a JSON array of records; "
        found += f"name one of its lists ({listed(lists)}) as data.key, or " if lists else ""
        if key is not None:
            found = f"no list of records in {key!r}; its keys are {listed(whole)}, or "
        raise DataError(f"{path}: {found}{TO_LINES}")
    if lost := [name for name in (*FIELDS, "tools") if name != lists[0] and whole.get(name)]:
        raise DataError(f"{path}: {lost[0]!r} stands beside the records in {lists[0]!r}; write it into every record")
    for number, record in enumerate(whole[lists[0]]):
        yield f"{path}, {lists[0]}[{number}]", record


def _is_list_of_turns(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and any(pair <= first.keys() for pair in ({"role", "content"}, {"from", "value"}))


def read_compressed(path: Path, readers: dict[str, Reader]) -> Iterator[tuple[str, Any]]:
    """Records of a .gz or .zst file by the suffix before that, through a temporary file.

    Raises: DataError when it is damaged or unpacks to more than `MAX_UNPACKED` bytes.
    """
    with tempfile.TemporaryDirectory() as folder:
        unpacked, n_bytes, opened = Path(folder) / path.stem, 0, gzip.open
        if path.suffix.lower() != ".gz":
            opened = partial(load("pyarrow", str(path), "parquet").input_stream, compression="zstd")
        try:
            with opened(str(path)) as packed, unpacked.open("wb") as file:
                while chunk := packed.read(_CHUNK):
                    n_bytes += file.write(chunk)
                    if n_bytes > MAX_UNPACKED:
                        raise DataError(f"{path}: unpacks to more than {MAX_UNPACKED:,} bytes; unpack it yourself")
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: cannot be unpacked ({error})") from error
        try:
            for place, record in read_records(unpacked, readers):
                if isinstance(record, DataError):
                    record = DataError(str(record).replace(str(unpacked), str(path)))
                yield place.replace(str(unpacked), str(path)), record
        except DataError as error:
            raise DataError(str(error).replace(str(unpacked), str(path))) from error


def readers_of(key: str | None = None, has_header: bool = True) -> dict[str, Reader]:
    """The readers by suffix, with the options of `read_json` and `read_csv`."""
    jsonl = CORE_READERS[".jsonl"]
    readers: dict[str, Reader] = {".json": partial(read_json, key=key), ".jsonl": jsonl, ".ndjson": jsonl}
    readers |= {s: partial(read_csv, delimiter=d, has_header=has_header) for s, d in ((".csv", ","), (".tsv", "\t"))}
    readers[".parquet"] = partial(read_table, form="parquet", batches_of=_parquet_batches)
    readers[".arrow"] = partial(read_table, form="Arrow", batches_of=_arrow_batches)
    readers |= {suffix: partial(read_compressed, readers=readers) for suffix in (".gz", ".zst")}
    return readers


READERS = readers_of()
