"""Records out of .json, .jsonl, .csv and .parquet files, one at a time, and the check of their texts."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from instruct_lit.errors import DataError

OnBadRecord = Literal["error", "skip"]
_CHUNK = 1 << 20
_UNREADABLE = (ValueError, RecursionError)  # valid JSON that Python does not read: thousands of digits, of brackets


def read_records(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield every record of a file with its place in it (`record 7`, `line 7`).

    Memory does not grow with the number of records. Raises DataError, naming the file and the place, when the file
    cannot be read, is not UTF-8, or is not what its ending says.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: files ending in {', '.join(READERS)} can be read, not {path.suffix or 'this one'}")
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not valid UTF-8 ({error}); convert the file to UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def checked_text(value: Any, place: str, name: str, may_be_empty: bool = False) -> str:
    """The text of a field; raises DataError naming the place when it is none, is empty or has broken characters."""
    if not isinstance(value, str):
        raise DataError(f"{place}: {name!r} must be text, found {type(value).__name__} {value!r:.60}")
    if not may_be_empty and not value.strip():
        raise DataError(f"{place}: {name!r} is empty")
    if "\ufffd" in value or not is_encodable(value):
        raise DataError(f"{place}: {name!r} has broken characters (the text was decoded wrongly before)")
    return value


def is_encodable(text: str) -> bool:
    """Whether a text has no lone surrogates, which no encoding can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    """Records of a JSON array, decoded one by one out of a sliding window of text."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig") as file:
        text, position, number = file.read(_CHUNK), 0, 0

        def skip(characters: str) -> str:
            """Move to the next character that is none of these and return it; an empty string at the end."""
            nonlocal text, position
            while True:
                while position < len(text) and text[position] in characters:
                    position += 1
                if position < len(text):
                    return text[position]
                text, position = file.read(_CHUNK), 0
                if not text:
                    return ""

        if skip(" \t\r\n") != "[":
            raise DataError(f"{path}: a .json file holds one array of records; one record a line is .jsonl")
        position += 1
        while (character := skip(" \t\r\n")) != "]":
            if number and character == ",":
                position += 1
                skip(" \t\r\n")
            elif number:
                raise DataError(f"{path}, record {number}: the array ends here without ']' or ','; is the file whole?")
            while True:
                try:
                    record, position = decoder.raw_decode(text, position)
                    break
                except json.JSONDecodeError as error:
                    more = file.read(max(_CHUNK, len(text)))
                    if not more:
                        raise DataError(f"{path}, record {number}: no valid JSON ({error.msg})") from error
                    text, position = text[position:] + more, 0
                except _UNREADABLE as error:
                    raise DataError(f"{path}, record {number}: {error}") from error
            yield f"{path}, record {number}", record
            number += 1
        position += 1
        if skip(" \t\r\n"):
            raise DataError(f"{path}: something follows the end of the array")


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = f"{path}, line {number}"
                try:
                    yield place, json.loads(line)
                except json.JSONDecodeError as error:
                    yield place, DataError(f"{place}: no valid JSON ({error.msg})")
                except _UNREADABLE as error:
                    yield place, DataError(f"{place}: {error}")


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            for number, row in enumerate(csv.DictReader(file, strict=True), start=1):
                row.pop(None, None)  # type: ignore[call-overload]
                yield f"{path}, record {number}", row
        except csv.Error as error:
            raise DataError(f"{path}: no valid CSV ({error})") from error


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow.parquet as parquet
        from pyarrow.lib import ArrowException
    except ImportError as error:
        raise DataError(f"{path}: parquet needs pyarrow; pip install 'instruct-lit[parquet]'") from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                for row in batch.to_pylist():
                    yield f"{path}, record {number}", row
                    number += 1
    except (ValueError, OSError, ArrowException) as error:
        raise DataError(f"{path}, record {number}: no valid parquet file ({error})") from error


READERS: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}
