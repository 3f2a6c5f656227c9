"""A Hugging Face data set read over the network in `datasets`' streaming mode; nothing is stored."""

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from instruct_lit.core.data.example import Format
from instruct_lit.core.data.records import FileSource, OnBadRecord
from instruct_lit.errors import DownloadError
from instruct_lit.optional_imports import load, need

N_SAMPLES, SAMPLE = 16, 1 << 16  # pieces of a file, and their bytes, that `sampled_digest` reads


def sampled_digest(path: Path) -> str:
    """A hash of a file's size and of pieces spread evenly over it: the whole of a file of up to a mebibyte."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for place in range(0, max(size, 1), max(SAMPLE, -(-size // N_SAMPLES))):
            file.seek(place)
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()


class StreamingHubSource(FileSource):
    """Examples of one split of a hub data set, or of a local folder in the hub's layout.

    Raises: ConfigError without the extra `streaming`, DownloadError when the data set cannot be opened or read.
    """

    def __init__(
        self,
        repo: str,
        revision: str | None = None,
        subset: str | None = None,
        split: str = "train",
        columns: Mapping[str, str] | None = None,
        on_bad_record: OnBadRecord = "error",
        name: str = "hub_stream",
        format: Format = "auto",
    ) -> None:
        super().__init__((), columns, on_bad_record, name, format)
        need("datasets", "data.source", "streaming")
        self.repo, self.revision, self.subset, self.split = repo, revision, subset, split

    @cached_property
    def commit(self) -> str:
        """The commit of the data set on the hub that `revision` names now; of a local folder, a hash of its files."""
        folder = Path(self.repo).expanduser()
        if folder.is_dir():
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            facts = [f"{path.relative_to(folder)} {sampled_digest(path)}" for path in files]
            return hashlib.sha256("\n".join(facts).encode()).hexdigest()
        from huggingface_hub import HfApi

        try:
            return str(HfApi().dataset_info(self.repo, revision=self.revision).sha)
        except Exception as error:  # the hub's client lets errors of its HTTP library through
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise DownloadError(f"data set {self.repo}, split {self.split}: cannot be opened ({reason})") from error

    @cached_property
    def _data(self) -> Any:
        datasets = load("datasets", "data.source", "streaming")
        revision = None if Path(self.repo).expanduser().is_dir() else self.commit
        try:
            return datasets.load_dataset(self.repo, self.subset, split=self.split, revision=revision, streaming=True)
        except Exception as error:
            place, reason = f"data set {self.repo}, split {self.split}", f"{type(error).__name__}: {error}"
            raise DownloadError(f"{place}: cannot be opened ({reason})") from error

    def shards(self) -> list[int]:
        return list(range(self._data.num_shards))

    def records(self, shard: int) -> Iterator[tuple[str, Any]]:
        number = 0
        try:
            for row in self._data.shard(num_shards=self._data.num_shards, index=shard):
                yield f"{self.repo}, shard {shard}, record {number}", row
                number += 1
        except Exception as error:
            place, reason = f"data set {self.repo}, shard {shard}, record {number}", f"{type(error).__name__}: {error}"
            raise DownloadError(f"{place}: cannot be read ({reason})") from error

    def fingerprint(self) -> str:
        """A hash of the commit and of how the data set is read."""
        facts = (self.repo, self.commit, self.subset, self.split, self.columns, self.on_bad_record, self.format)
        return hashlib.sha256(f"{facts}{self.reading}".encode()).hexdigest()[:16]
