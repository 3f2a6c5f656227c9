"""Encoded examples on disk: flat memory-mapped arrays with offsets, written once per data, template and tokenizer.

Tokens, masks and the records themselves are appended file by file while the source streams, so memory grows neither
with the number of records when writing nor when reading, and a second start opens the files without parsing anything.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from instruct_lit.core.data.encode import EncodedExample, Encoder
from instruct_lit.core.data.example import Example
from instruct_lit.errors import DataError

_COMPLETE = "counts.json"  # written last: a folder without it was never finished


class EncodedStore:
    """Random access to the encoded examples, and to their records, of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts: dict[str, int] = json.loads((folder / _COMPLETE).read_text())
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        self._record_offsets = np.load(folder / "record_offsets.npy", mmap_mode="r")
        self._tokens = _map(folder / "tokens.bin", np.dtype(np.int32))
        self._is_response = _map(folder / "is_response.bin", np.dtype(bool))
        self._records = _map(folder / "records.jsonl", np.dtype(np.uint8))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> EncodedExample:
        start, end = self._offsets[index], self._offsets[index + 1]
        ids = np.asarray(self._tokens[start:end], dtype=np.int64)
        return EncodedExample(int(index), ids, np.array(self._is_response[start:end]))

    def example(self, index: int) -> Example:
        """The record behind an encoded example."""
        start, end = self._record_offsets[index], self._record_offsets[index + 1]
        return Example.from_record(json.loads(self._records[start:end].tobytes()))

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each example `(n,)`."""
        return np.diff(self._offsets)

    @property
    def n_response(self) -> np.ndarray:
        """Number of response tokens of each example `(n,)`."""
        return np.add.reduceat(self._is_response, self._offsets[:-1], dtype=np.int64)

    @property
    def last_ids(self) -> np.ndarray:
        """The last token of each example `(n,)`: end-of-text unless the response was cut."""
        return self._tokens[self._offsets[1:] - 1]


def open_or_build(
    cache_dir: Path, key: str, source: Iterable[Example], encoder: Encoder, source_counts: Callable[[], dict[str, int]]
) -> EncodedStore:
    """Open the store of that key, or encode the source into a new one; a killed build leaves nothing that is believed.

    `source_counts` is asked after the source has been read. Raises DataError when no example is left or the cache
    cannot be written.
    """
    folder = cache_dir / "encoded" / key
    if not (folder / _COMPLETE).exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=folder.parent))
        except OSError as error:
            raise DataError(
                f"paths.cache={cache_dir}: cannot be written ({error.strerror}); choose another folder"
            ) from error
        try:
            _write(temporary, source, encoder, source_counts)
            try:
                os.replace(temporary, folder)
            except OSError as error:  # another process was first
                if not (folder / _COMPLETE).exists():
                    raise DataError(f"{folder}: cannot be written ({error.strerror}); delete what is there") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return EncodedStore(folder)


def _write(
    folder: Path, source: Iterable[Example], encoder: Encoder, source_counts: Callable[[], dict[str, int]]
) -> None:
    offsets, record_offsets = [0], [0]
    with (
        (folder / "tokens.bin").open("wb") as tokens,
        (folder / "is_response.bin").open("wb") as is_response,
        (folder / "records.jsonl").open("wb") as records,
    ):
        for example, encoded in encoder.encode(source):
            tokens.write(encoded.ids.astype(np.int32).tobytes())
            is_response.write(encoded.is_response.tobytes())
            line = json.dumps(example.as_record(), ensure_ascii=True, default=str).encode() + b"\n"
            records.write(line)
            offsets.append(offsets[-1] + len(encoded.ids))
            record_offsets.append(record_offsets[-1] + len(line))
    counts = {**source_counts(), **vars(encoder.counts)}
    if len(offsets) == 1:
        raise DataError(f"no example is left to train on: {counts}; see data.max_length and data.on_long")
    np.save(folder / "offsets.npy", np.array(offsets, dtype=np.int64))
    np.save(folder / "record_offsets.npy", np.array(record_offsets, dtype=np.int64))
    (folder / _COMPLETE).write_text(json.dumps(counts))


def _map(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    return np.memmap(path, dtype=dtype, mode="r")
