"""Sources of examples that are downloaded on first use: a URL, a data set of the Hugging Face hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instruct_lit.core.data.example import Format
from instruct_lit.core.data.records import READERS, FileSource, OnBadRecord
from instruct_lit.datasets.download import fetch, fetch_data_set


class UrlSource(FileSource):
    """Examples of one file at a URL; a local `path` replaces the download."""

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

    def shards(self) -> Sequence[Any]:
        self.paths = self.paths or [fetch(self.url, self.cache_dir / "downloads", self.sha256)]
        return super().shards()


class HubSource(FileSource):
    """Examples of a Hugging Face data set: its data files, downloaded by huggingface_hub, or a local `path`."""

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

    def shards(self) -> Sequence[Any]:
        where = self.cache_dir / "hub"
        self.paths = self.paths or fetch_data_set(self.repo, self.revision, self.pattern, tuple(READERS), where)
        return super().shards()
