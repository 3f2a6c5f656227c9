"""Sources of examples: files, a download, a Hugging Face data set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.formats import Format, to_example
from instruct_lit.core.data.records import READERS, OnBadRecord, read_records
from instruct_lit.datasets.download import fetch, fetch_data_set
from instruct_lit.errors import DataError


def parsed(
    records: Iterable[tuple[str, Any]], columns: Mapping[str, str] | None, format: Format, on_bad_record: OnBadRecord
) -> Iterator[Example | None]:
    """Examples of records with their places; None for a bad one that is skipped."""
    for place, record in records:
        try:
            if isinstance(record, DataError):
                raise record
            yield to_example(record, place, columns, format)
        except DataError:
            if on_bad_record == "error":
                raise
            yield None


class Sharded:
    """A source in parts, `shards`, which `read` reads apart; after iterating `n_skipped` counts the bad records."""

    name: str
    n_skipped = 0

    def prepare(self) -> None:
        """Fetch what is needed, so that what is wrong with it shows before the run."""

    def fingerprint(self) -> str:
        """Changes with the examples."""
        raise NotImplementedError

    def quick_fingerprint(self) -> str:
        """The same for sets that are too big to be read for it: changes with what is named and how it is read."""
        raise NotImplementedError

    def shards(self) -> Sequence[Any]:
        """The parts of the set that can be read apart."""
        raise NotImplementedError

    def read(self, shard: Any) -> Iterator[Example | None]:
        """The examples of one part; None for a bad record that is skipped."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Example]:
        self.n_skipped = 0
        for shard in self.shards():
            for example in self.read(shard):
                if example is None:
                    self.n_skipped += 1
                else:
                    yield example


class FileSource(Sharded):
    """Examples of one or several files, or of all data files in a folder; `format` is the form of their records.

    A bad record raises DataError, or with `on_bad_record="skip"` is counted in `n_skipped`.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        columns: Mapping[str, str] | None = None,
        on_bad_record: OnBadRecord = "error",
        name: str = "files",
        format: Format = "auto",
    ) -> None:
        self.name, self.format = name, format
        self.paths = [Path(p).expanduser() for p in ([path] if isinstance(path, str | Path) else path)]
        self.columns = dict(columns) if columns else None
        self.on_bad_record = on_bad_record

    def files(self) -> list[Path]:
        """The data files, folders opened; raises DataError when there is none."""
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
        for path in self.files():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]

    def quick_fingerprint(self) -> str:
        facts = [f"{self.columns} {self.on_bad_record} {self.format}"]
        facts += [f"{path.name} {path.stat().st_size}" for path in self.files()]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]

    def shards(self) -> list[Path]:
        return self.files()

    def read(self, shard: Path) -> Iterator[Example | None]:
        yield from parsed(read_records(shard), self.columns, self.format, self.on_bad_record)


class Downloaded(FileSource):
    """Examples of files that are fetched when they are first asked for; given paths take the place of the download."""

    def fetched(self) -> list[Path]:
        """The files, fetched unless they are in the cache."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Fetch the files unless they are in the cache."""
        if not self.paths:
            self.paths = self.fetched()

    def files(self) -> list[Path]:
        self.prepare()
        return super().files()


class UrlSource(Downloaded):
    """Examples of one downloaded file."""

    def __init__(
        self,
        url: str,
        cache_dir: str,
        sha256: str | None = None,
        columns: Mapping[str, str] | None = None,
        on_bad_record: OnBadRecord = "error",
        path: str | Sequence[str] | None = None,
        name: str = "download",
        format: Format = "auto",
    ) -> None:
        super().__init__(path or [], columns, on_bad_record, name, format)
        self.url, self.cache_dir, self.sha256 = url, Path(cache_dir), sha256

    def fetched(self) -> list[Path]:
        return [fetch(self.url, self.cache_dir / "downloads", self.sha256)]


class HubSource(Downloaded):
    """Examples of a Hugging Face data set: its data files are fetched through huggingface_hub and read like others."""

    def __init__(
        self,
        repo: str,
        cache_dir: str,
        revision: str | None = None,
        pattern: str = "*",
        columns: Mapping[str, str] | None = None,
        on_bad_record: OnBadRecord = "error",
        path: str | Sequence[str] | None = None,
        name: str = "hub",
        format: Format = "auto",
    ) -> None:
        super().__init__(path or [], columns, on_bad_record, name, format)
        self.repo, self.revision, self.pattern, self.cache_dir = repo, revision, pattern, Path(cache_dir)

    def fetched(self) -> list[Path]:
        return fetch_data_set(self.repo, self.revision, self.pattern, tuple(READERS), self.cache_dir / "hub")


def digest_of(example: Example) -> bytes:
    """The same for examples whose texts are the same."""
    earlier = (text for turn in example.history for text in turn)
    text = "\x00".join((example.instruction, example.input, example.output, example.system, *earlier))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class deduplicated:  # reads as a function at its call: `for example in deduplicated(source)`
    """The examples without exact repetitions; `n_dropped` counts those after iterating."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self.examples = examples
        self.n_dropped = 0

    def __iter__(self) -> Iterator[Example]:
        self.n_dropped = 0
        seen: set[bytes] = set()
        for example in self.examples:
            digest = digest_of(example)
            if digest in seen:
                self.n_dropped += 1
                continue
            seen.add(digest)
            yield example
