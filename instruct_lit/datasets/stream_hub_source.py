"""A Hugging Face data set read over the network in `datasets`' streaming mode; nothing is stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from instruct_lit.core.data.example import Format
from instruct_lit.core.data.records import FileSource, OnBadRecord
from instruct_lit.core.optional_imports import load, need
from instruct_lit.errors import DownloadError


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
    def _data(self) -> Any:
        datasets = load("datasets", "data.source", "streaming")
        try:
            return datasets.load_dataset(
                self.repo, self.subset, split=self.split, revision=self.revision, streaming=True
            )
        except Exception as error:
            raise DownloadError(
                f"data set {self.repo}, split {self.split}: cannot be opened ({type(error).__name__}: {error})"
            ) from error

    def shards(self) -> list[int]:
        return list(range(self._data.num_shards))

    def records(self, shard: int) -> Iterator[tuple[str, Any]]:
        rows = iter(self._data.shard(num_shards=self._data.num_shards, index=shard))
        number = 0
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:
                raise DownloadError(
                    f"data set {self.repo}, shard {shard}, record {number}: cannot be read "
                    f"({type(error).__name__}: {error})"
                ) from error
            yield f"{self.repo}, shard {shard}, record {number}", row
            number += 1

    def fingerprint(self) -> str:
        """A hash of how the data set is named and read; with `revision` it identifies the content."""
        facts = (self.repo, self.revision, self.subset, self.split, self.columns, self.on_bad_record, self.format)
        return hashlib.sha256(str(facts).encode()).hexdigest()[:16]
