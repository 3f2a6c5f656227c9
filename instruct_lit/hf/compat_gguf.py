"""Undocumented parts of gguf's reader that this package uses, so that transformers reads a file's metadata once.

A vocabulary of 262,144 tokens is a million small arrays, which transformers reads for the tokenizer, the configuration
and the weights: a minute in all. `tests/hf/test_compat_gguf.py` names the part that a new version lacks.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np


def shared_reader(gguf_file: str | None) -> AbstractContextManager[Any]:
    """Let everything inside share one reader of a GGUF file; without `gguf_file` nothing changes.

    Undocumented: transformers imports `GGUFReader` and `get_tensor_name_map` from gguf whenever it needs them.
    """
    if gguf_file is None:
        return nullcontext()
    import gguf

    return patch.multiple(gguf, GGUFReader=_reader, get_tensor_name_map=_tensor_names())


def forget_reader() -> None:
    """Free the memory of the last file's metadata."""
    _read.cache_clear()


def _reader(path: Any) -> Any:
    return _read(Path(path), Path(path).stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _read(path: Path, changed_ns: int) -> Any:
    from gguf.gguf_reader import GGUFReader

    class PlainReader(GGUFReader):
        """Undocumented: `data`, the memory map that every value is a slice of; slices of a plain array are cheap."""

        @property  # type: ignore[override]
        def data(self) -> np.ndarray:
            return self._plain

        @data.setter
        def data(self, mapped: np.ndarray) -> None:
            self._plain = mapped.view(np.ndarray)

    return PlainReader(path)


@cache
def _tensor_names() -> Any:
    from gguf.tensor_mapping import get_tensor_name_map

    return cache(get_tensor_name_map)  # transformers calls it for every module of a model
