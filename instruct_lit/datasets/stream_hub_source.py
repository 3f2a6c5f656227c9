"""A Hugging Face data set read over the network as it goes, through `datasets`; nothing of it is stored."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.formats import Format
from instruct_lit.core.data.records import OnBadRecord
from instruct_lit.core.data.sources import Sharded, parsed
from instruct_lit.errors import ConfigError, DownloadError


class StreamingHubSource(Sharded):
    """Examples of one split of a hub data set, or of a local folder in the hub's form, in `datasets`' streaming mode.

    Needs the extra `streaming`. Raises DownloadError when the set cannot be opened or read.
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
        if importlib.util.find_spec("datasets") is None:
            raise ConfigError("data.source: streaming needs datasets; pip install 'instruct-lit[streaming]'")
        self.repo, self.revision, self.subset, self.split, self.name = repo, revision, subset, split, name
        self.columns, self.on_bad_record, self.format = dict(columns) if columns else None, on_bad_record, format

    @cached_property
    def _data(self) -> Any:
        import datasets

        try:
            return datasets.load_dataset(
                self.repo, self.subset, split=self.split, revision=self.revision, streaming=True
            )
        except Exception as error:
            raise DownloadError(
                f"data set {self.repo}, split {self.split}: cannot be opened ({type(error).__name__}: {error})"
            ) from error

    def prepare(self) -> None:
        self._data  # noqa: B018

    def shards(self) -> list[int]:
        return list(range(self._data.num_shards))

    def read(self, shard: int) -> Iterator[Example | None]:
        yield from parsed(self._records(shard), self.columns, self.format, self.on_bad_record)

    def _records(self, shard: int) -> Iterator[tuple[str, Any]]:
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

    def quick_fingerprint(self) -> str:
        facts = (self.repo, self.revision, self.subset, self.split, self.columns, self.on_bad_record, self.format)
        return hashlib.sha256(str(facts).encode()).hexdigest()[:16]

    def fingerprint(self) -> str:
        return self.quick_fingerprint()  # a set that is named with its revision does not change
