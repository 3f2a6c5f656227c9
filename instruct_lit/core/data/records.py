"""Sources of examples in files: JSON and JSON Lines; what they skipped, and why."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from instruct_lit.core.data.example import FIELDS, WHOLE, Example, Format, listed, to_example
from instruct_lit.errors import DataError, printable

OnBadRecord = Literal["error", "skip"]
MAX_REASONS, MAX_PLACES = 20, 3  # that are remembered of bad records, and of each reason
MANY_BAD = 0.1  # share of bad records from which they are a warning
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # of a saved data set
_LFS = b"version https://git-lfs"
TO_LINES = "rename a file with one record per line to .jsonl"
UNREADABLE = (ValueError, RecursionError)  # valid JSON beyond Python's limits: thousands of digits or of brackets


def read_records(path: Path, readers: Mapping[str, Any] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield every record of a file, or the DataError of an unreadable one, with its place (`<path>, line 7`).

    Raises: DataError when the file cannot be read, is not UTF-8, or is not in the format that its suffix names.
    """
    reader = (readers or READERS).get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unsupported suffix {path.suffix!r}; allowed are {', '.join(READERS)}")
    try:
        with path.open("rb") as file:
            if file.read(len(_LFS)) == _LFS:
                raise DataError(f"{path}: a pointer of Git LFS and not the file itself; fetch it with `git lfs pull`")
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: invalid UTF-8 ({error}); convert the file to UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    """Records of a JSON array; `datasets` reads one at a time."""
    try:
        records = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=json_object)
    except UNREADABLE as error:
        raise unreadable(str(path), error) from error
    if not isinstance(records, list):
        raise DataError(f"{path}: not a JSON array of records; {TO_LINES}")
    yield from ((f"{path}, record {number}", record) for number, record in enumerate(records))


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = f"{path}, line {number}"
                try:
                    yield place, json.loads(line, object_pairs_hook=json_object)
                except UNREADABLE as error:
                    yield place, unreadable(place, error)


def json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON file. Raises: ValueError for a repeated key: all but the last of its values would be lost."""
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError(f"the key {Counter(key for key, _ in pairs).most_common(1)[0][0]!r} stands more than once")
    return found


def unreadable(place: str, error: Exception) -> DataError:
    """The message of JSON that cannot be read."""
    reason = f"invalid JSON ({error.msg})" if isinstance(error, json.JSONDecodeError) else error
    return DataError(f"{place}: {reason}")


# By suffix; `datasets` adds .csv and .parquet, and reads .json one record at a time.
READERS: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {".json": _json, ".jsonl": _jsonl}


@dataclass
class ReadingNotes:
    """What was not trained on: bad records by reason with their first places, and fields that nothing reads."""

    n_records: int = 0
    n_bad: Counter[str] = field(default_factory=Counter)  # by reason
    places: dict[str, list[str]] = field(default_factory=dict)
    unread_fields: Counter[str] = field(default_factory=Counter)

    def skip(self, place: str, error: DataError) -> None:
        """Note a bad record; reasons that differ in numbers and in what was found are one."""
        reason, _, _ = str(error).removeprefix(printable(place)).lstrip(" :,").partition(", found")
        reason = re.sub(r"\d+", "…", reason)
        if reason not in self.n_bad and len(self.n_bad) >= MAX_REASONS:
            reason = "other reasons"
        self.n_bad[reason] += 1
        places = self.places.setdefault(reason, [])
        if len(places) < MAX_PLACES:
            places.append(printable(place))

    def lines(self) -> list[str]:
        """The notes for a person: one line for each reason, and one for the unread fields."""
        found, n_bad, n = [], sum(self.n_bad.values()), max(1, self.n_records)
        if n_bad:
            warning = "warning: " if n_bad > MANY_BAD * n else ""
            found.append(f"{warning}{n_bad:,} of {n:,} records ({n_bad / n:.1%}) are bad and were skipped:")
        for reason, n_records in Counter(self.n_bad).most_common():
            found.append(f"  {n_records:,} × {reason[:150]}; first: {', '.join(self.places[reason])}")
        if self.unread_fields:
            found.append("fields that are not trained on: " + listed(printable(f) or "''" for f in self.unread_fields))
        return found


class FileSource:
    """Examples of one or several files, or of all data files in a folder; `notes` are those of the last iteration.

    A bad record raises DataError, or is skipped with `on_bad_record="skip"`. The base of other sources in shards that
    can be read separately: a subclass replaces `shards`, `records` and `fingerprint`.
    """

    # Place and content of every record of a shard; the content may be a DataError.
    records: Callable[[Any], Iterable[tuple[str, Any]]] = staticmethod(read_records)
    reading = ""  # how `records` or `rewrite` was changed
    rewrite: Callable[[Example, str], Example] = staticmethod(lambda example, place: example)

    def __init__(
        self,
        path: str | Sequence[str],
        columns: Mapping[str, str] | None = None,
        on_bad_record: OnBadRecord = "error",
        name: str = "files",
        format: Format = "auto",
    ) -> None:
        self.paths = [Path(p).expanduser() for p in ([path] if isinstance(path, str | Path) else path)]
        self.name, self.on_bad_record, self.format = name, on_bad_record, format
        self.columns = dict(columns) if columns else None
        self._fields = {field for key, field in (self.columns or {}).items() if key in FIELDS}
        self.notes, self.unseen = ReadingNotes(), set(self._fields)  # fields in `columns` that no record had so far

    def read(self, shard: Any) -> Iterator[Example | None]:
        """The examples of one shard; None for a bad record that is skipped."""
        for place, record in self.records(shard):
            self.notes.n_records += 1
            self.unseen.difference_update(record if isinstance(record, dict) else ())
            example = None
            try:
                if isinstance(record, DataError):
                    raise record
                example = self.rewrite(to_example(record, place, self.columns, self.format), place)
                self.notes.unread_fields.update(name for name in example.extra if name != WHOLE)
            except DataError as error:
                if self.on_bad_record == "error":
                    raise DataError(f"{error}; data.on_bad_record=skip leaves bad records out") from error
                self.notes.skip(place, error)
            yield example

    def __iter__(self) -> Iterator[Example]:
        self.notes, self.unseen = ReadingNotes(), set(self._fields)
        files = ", ".join(map(str, self.paths[:8]))
        for shard in self.shards():
            yield from (example for example in self.read(shard) if example is not None)
        if not self.notes.n_records:
            raise DataError(f"{files}: no records in it")
        if self.unseen:
            found = f"no record has the field {listed(sorted(self.unseen))} of data.columns"
            raise DataError(f"{files}: {found}; correct the name, or add the field, with null where it is empty")

    def shards(self) -> Sequence[Any]:
        """The data files. Raises: DataError when there are none."""
        files: list[Path] = []
        for path in self.paths:
            if path.is_dir():
                inside = [file for file in sorted(path.rglob("*")) if _has_records(file, path)]
                if not inside:
                    raise DataError(f"data.path={path}: no file ending in {', '.join(READERS)} in this folder")
                files += inside
            elif path.is_file():
                files.append(path)
            else:
                raise DataError(f"data.path={path}: no such file or folder")
        return files

    def fingerprint(self) -> str:
        """A hash that changes with the examples."""
        digest = hashlib.sha256(f"{self.columns} {self.on_bad_record} {self.format}{self.reading}".encode())
        for path in self.shards():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]


def _has_records(file: Path, folder: Path) -> bool:
    """Whether a path in a folder is a data file: not hidden, and not a description that `datasets` saves beside one."""
    is_hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix.lower() in READERS and file.name not in _DESCRIPTIONS and not is_hidden and file.is_file()


def without_duplicates(examples: Iterable[Example], counts: dict[str, int]) -> Iterator[Example]:
    """The examples without exact duplicates, whose number is added to `counts` as `n_duplicates`."""
    seen: set[bytes] = set()
    counts["n_duplicates"] = 0
    for example in examples:
        if (digest := example.digest) in seen:
            counts["n_duplicates"] += 1
        else:
            seen.add(digest)
            yield example
