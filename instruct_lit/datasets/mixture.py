"""Several encoded sets under one numbering, and how often an epoch sees each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from instruct_lit.core.data.encode import EncodedExample
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.sources import digest_of
from instruct_lit.core.data.store import EncodedStore
from instruct_lit.errors import ConfigError


class MixtureStore:
    """Encoded stores one after the other, under the interface of one; `names` are those of the sets.

    An example's index counts through all of them.
    """

    def __init__(self, stores: Mapping[str, EncodedStore]) -> None:
        self.names = tuple(stores)
        self._stores = tuple(stores.values())
        self.starts = np.cumsum([0, *map(len, self._stores)])
        self.counts: dict[str, int] = dict(sum((Counter(store.counts) for store in self._stores), Counter()))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> EncodedExample:
        number, place = self._place(index)
        found = self._stores[number][place]
        return EncodedExample(int(index), found.ids, found.is_response)

    def example(self, index: int) -> Example:
        """The record behind an encoded example."""
        number, place = self._place(index)
        return self._stores[number].example(place)

    def _place(self, index: int) -> tuple[int, int]:
        number = int(self.set_of(np.array([index]))[0])
        return number, int(index - self.starts[number])

    def set_of(self, indices: np.ndarray) -> np.ndarray:
        """The number of the set that each index lies in."""
        return np.searchsorted(self.starts, indices, side="right") - 1

    def repeated(self) -> np.ndarray:
        """Which examples an earlier set has exactly so `(n,)`."""
        seen: set[bytes] = set()
        found = np.zeros(len(self), dtype=bool)
        for index in range(len(self)):
            digest = digest_of(self.example(index))
            found[index] = digest in seen
            seen.add(digest)
        return found

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each example `(n,)`."""
        return np.concatenate([store.lengths for store in self._stores])

    @property
    def n_response(self) -> np.ndarray:
        """Number of response tokens of each example `(n,)`."""
        return np.concatenate([store.n_response for store in self._stores])

    @property
    def last_ids(self) -> np.ndarray:
        """The last token of each example `(n,)`."""
        return np.concatenate([store.last_ids for store in self._stores])


@dataclass(frozen=True)
class Mixture:
    """How often an epoch sees each set: by `repeats`, or by `weights` of the examples that it sees.

    Weights keep the number of examples of an epoch, so a set with a large weight is repeated and one with a small
    weight is seen in part, another part every epoch. Fractions are drawn by the epoch's seed.
    """

    weights: Mapping[str, float] | None = None
    repeats: Mapping[str, float] | None = None

    def repeats_of(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """How often an epoch sees every example of each set on average."""
        if self.weights is None:
            return {name: float((self.repeats or {}).get(name, 1.0)) for name in sizes}
        total, weight = sum(sizes.values()), sum(self.weights[name] for name in sizes)
        empty = [name for name, size in sizes.items() if size == 0 and self.weights[name] > 0]
        if empty:
            raise ConfigError(f"data.sets.{empty[0]}.weight={self.weights[empty[0]]}: the set has no training example")
        return {name: self.weights[name] / weight * total / max(1, size) for name, size in sizes.items()}


@dataclass(frozen=True)
class Share:
    """What an epoch sees of one set."""

    n_examples: int
    n_learnt_tokens: int
    repeats: float


def draw(parts: Sequence[tuple[np.ndarray, float]], random: np.random.Generator) -> np.ndarray:
    """The positions of one epoch: of each part (positions, repeats) whole rounds, and a rest that is drawn."""
    drawn = []
    for positions, repeats in parts:
        n_rounds = int(repeats)
        n_rest = round((repeats - n_rounds) * len(positions))
        drawn += [positions] * n_rounds + [np.sort(random.choice(positions, n_rest, replace=False))]
    return np.concatenate(drawn)
