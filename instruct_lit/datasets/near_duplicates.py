"""Texts that are nearly the same: MinHash (Broder 1997) through datasketch, and groups for a split to keep together."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from instruct_lit.errors import ConfigError

Together = Literal["same_prompt", "near_duplicates", "nothing"]
THRESHOLD = 0.8  # share of word shingles in common from which two questions are nearly the same
SHINGLE = 3  # words
N_PERMUTATIONS = 128  # of a signature; the share in common is estimated to about 0.04


class NearDuplicateIndex:
    """Finds, among the texts added before, those that share at least `threshold` of their word shingles (Jaccard).

    Needs the extra `filters`; memory grows by about a kilobyte a text.
    """

    def __init__(self, threshold: float = THRESHOLD) -> None:
        if importlib.util.find_spec("datasketch") is None:
            raise ConfigError("near-duplicates: need datasketch; pip install 'instruct-lit[filters]'")
        from datasketch import MinHashLSH

        if not 0 < threshold <= 1:
            raise ConfigError(f"data.filters.near_duplicates.threshold={threshold}: a share above 0 and up to 1")
        self.threshold = threshold
        # Candidates are found by bands; weighing false negatives more makes the bands miss fewer.
        self._index = MinHashLSH(threshold, N_PERMUTATIONS, weights=(0.2, 0.8))
        self._signatures: list[Any] = []

    def add(self, text: str, only_new: bool = False) -> list[int]:
        """The numbers of the earlier texts that this one nearly is; it becomes the next number.

        With `only_new` a text that nearly is an earlier one gets no number.
        """
        from datasketch import MinHash

        signature = MinHash(N_PERMUTATIONS, seed=1)
        signature.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in shingles(text)])
        near = sorted(
            number
            for number in self._index.query(signature)
            if signature.jaccard(self._signatures[number]) >= self.threshold
        )
        if not (near and only_new):
            self._index.insert(len(self._signatures), signature)
            self._signatures.append(signature)
        return near


def words(text: str) -> list[str]:
    """The words of a text in lower case; of a text without any, its characters."""
    return re.findall(r"\w+", text.lower()) or list(text.strip())


def shingles(text: str) -> set[str]:
    """Every run of three words; a shorter text is one shingle."""
    found = words(text)
    return {" ".join(found[i : i + SHINGLE]) for i in range(max(1, len(found) - SHINGLE + 1))}


def groups_of(texts: Iterable[str], how: Together) -> np.ndarray:
    """A number for each text, the same for texts that belong together: the same words, or nearly the same text."""
    if how == "nothing":
        return np.arange(sum(1 for _ in texts))
    if how == "same_prompt":
        seen: dict[str, int] = {}
        return np.array([seen.setdefault(" ".join(words(text)), len(seen)) for text in texts], dtype=np.int64)
    index = NearDuplicateIndex()
    parent: list[int] = []

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for number, text in enumerate(texts):
        parent.append(number)
        for near in index.add(text):
            parent[root(near)] = root(number)
    return np.array([root(number) for number in range(len(parent))], dtype=np.int64)
