"""Sources of examples in files: readers of .json, .jsonl, .csv and .parquet, one record at a time."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from instruct_lit.core.data.example import Example, Format, to_example
from instruct_lit.core.optional_imports import load
from instruct_lit.errors import DataError

OnBadRecord = Literal["error", "skip"]
_CHUNK = 1 << 20
_UNREADABLE = (ValueError, RecursionError)  # valid JSON beyond Python's limits: thousands of digits or of brackets


def read_records(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield every record of a file with its place (`<path>, record 7` or `<path>, line 7`), in constant memory.

    Raises: DataError, naming file and place, when the file cannot be read, is not UTF-8, or is not in the format that
        its suffix names.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unsupported suffix {path.suffix!r}; allowed are {', '.join(READERS)}")
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: invalid UTF-8 ({error}); convert the file to UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    """Records of a JSON array, decoded one by one from a sliding window of text.

    Not by ijson: it is no faster, refuses integers above 64 bits, and replaces a lone surrogate by `?`, which hides a
    broken text from `checked_text`.
    """
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig") as file:
        text, position, number = file.read(_CHUNK), 0, 0

        def next_character() -> str:
            """Move past white space and return the character there, an empty string at the end."""
            nonlocal text, position
            while True:
                while position < len(text) and text[position] in " \t\r\n":
                    position += 1
                if position < len(text):
                    return text[position]
                text, position = file.read(_CHUNK), 0
                if not text:
                    return ""

        if next_character() != "[":
            raise DataError(f"{path}: not a JSON array of records; rename a file with one record per line to .jsonl")
        position += 1
        while (character := next_character()) != "]":
            if number and character == ",":
                position += 1
                next_character()
            elif number:
                raise DataError(f"{path}, record {number}: expected ',' or ']'; is the file complete?")
            while True:
                try:
                    record, position = decoder.raw_decode(text, position)
                    break
                except json.JSONDecodeError as error:
                    more = file.read(max(_CHUNK, len(text)))
                    if not more:
                        raise DataError(f"{path}, record {number}: invalid JSON ({error.msg})") from error
                    text, position = text[position:] + more, 0
                except _UNREADABLE as error:
                    raise DataError(f"{path}, record {number}: {error}") from error
            yield f"{path}, record {number}", record
            number += 1
        position += 1
        if next_character():
            raise DataError(f"{path}: text after the end of the array")


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = f"{path}, line {number}"
                try:
                    yield place, json.loads(line)
                except json.JSONDecodeError as error:
                    yield place, DataError(f"{place}: invalid JSON ({error.msg})")
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
            raise DataError(f"{path}: invalid CSV ({error})") from error


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    parquet, lib = (load(f"pyarrow.{module}", str(path), "parquet") for module in ("parquet", "lib"))
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                for row in batch.to_pylist():
                    yield f"{path}, record {number}", row
                    number += 1
    except (ValueError, OSError, lib.ArrowException) as error:
        raise DataError(f"{path}, record {number}: invalid parquet file ({error})") from error


READERS: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}


class ShardedSource:
    """Examples in shards that can be read separately; after an iteration `n_skipped` counts the bad records.

    A subclass gives `shards`, the `records` of a shard with their places, and a `fingerprint`. A bad record raises
    DataError, or is skipped with `on_bad_record="skip"`.
    """

    n_skipped = 0

    def __init__(
        self, name: str, columns: Mapping[str, str] | None, on_bad_record: OnBadRecord, format: Format
    ) -> None:
        self.name, self.on_bad_record, self.format = name, on_bad_record, format
        self.columns = dict(columns) if columns else None

    def shards(self) -> Sequence[Any]:
        """What `records` accepts."""
        raise NotImplementedError

    def records(self, shard: Any) -> Iterable[tuple[str, Any]]:
        """Place and content of every record of a shard; the content may be a DataError."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A hash that changes with the examples."""
        raise NotImplementedError

    def read(self, shard: Any) -> Iterator[Example | None]:
        """The examples of one shard; None for a bad record that is skipped."""
        for place, record in self.records(shard):
            try:
                if isinstance(record, DataError):
                    raise record
                yield to_example(record, place, self.columns, self.format)
            except DataError:
                if self.on_bad_record == "error":
                    raise
                yield None

    def __iter__(self) -> Iterator[Example]:
        self.n_skipped = 0
        for shard in self.shards():
            for example in self.read(shard):
                if example is None:
                    self.n_skipped += 1
                else:
                    yield example


class FileSource(ShardedSource):
    """Examples of one or several files, or of all data files in a folder."""

    records = staticmethod(read_records)  # type: ignore[assignment]

    def __init__(
        self,
        path: str | Sequence[str],
        columns: Mapping[str, str] | None = None,
        on_bad_record: OnBadRecord = "error",
        name: str = "files",
        format: Format = "auto",
    ) -> None:
        super().__init__(name, columns, on_bad_record, format)
        self.paths = [Path(p).expanduser() for p in ([path] if isinstance(path, str | Path) else path)]

    def shards(self) -> list[Path]:
        """The data files. Raises: DataError when there are none."""
        files: list[Path] = []
        for path in self.paths:
            if path.is_dir():
                inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in READERS and p.is_file())
                if not inside:
                    raise DataError(f"data.path={path}: no file ending in {', '.join(READERS)} in this folder")
                files += inside
            elif path.is_file():
                files.append(path)
            else:
                raise DataError(f"data.path={path}: no such file or folder")
        return files

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.columns} {self.on_bad_record} {self.format}".encode())
        for path in self.shards():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]


def without_duplicates(examples: Iterable[Example], counts: dict[str, int]) -> Iterator[Example]:
    """The examples without exact duplicates, whose number is added to `counts` as `n_duplicates`."""
    seen: set[bytes] = set()
    counts["n_duplicates"] = 0
    for example in examples:
        digest = example.digest
        if digest in seen:
            counts["n_duplicates"] += 1
        else:
            seen.add(digest)
            yield example
