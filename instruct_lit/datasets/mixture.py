"""Several data sets in one run: their stores under one numbering, and how often an epoch sees each of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from instruct_lit.core.data.batching import BatchSampler, ResumableLoader
from instruct_lit.core.data.datamodule import InstructionData, make_split
from instruct_lit.core.data.encode import EncodedExample, EncodedStore
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.records import MAX_PLACES, ReadingNotes
from instruct_lit.core.data.settings import NAMES, Source, Split
from instruct_lit.errors import ConfigError


class MixtureStore(EncodedStore):
    """Encoded stores one after the other, with the interface of one; an index counts through all of them."""

    def __init__(self, stores: Mapping[str, EncodedStore]) -> None:
        self.names = tuple(stores)
        self._stores = tuple(stores.values())
        self.starts = np.cumsum([0, *map(len, self._stores)])
        self.lengths = np.concatenate([store.lengths for store in self._stores])
        self.notes = merged_notes([store.notes for store in self._stores])
        self.counts: dict[str, int] = dict(sum((Counter(store.counts) for store in self._stores), Counter()))

    def __reduce__(self) -> tuple[Any, ...]:
        return MixtureStore, (dict(zip(self.names, self._stores, strict=True)),)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> EncodedExample:
        number = int(self.store_of(index))
        found = self._stores[number][int(index - self.starts[number])]
        return replace(found, index=int(index))

    def example(self, index: int) -> Example:
        number = int(self.store_of(index))
        return self._stores[number].example(int(index - self.starts[number]))

    def store_of(self, indices: Any) -> np.ndarray:
        """The number of the store that each index lies in."""
        return np.searchsorted(self.starts, indices, side="right") - 1

    def duplicates(self) -> np.ndarray:
        """Which examples are exact duplicates of one in an earlier store `(n,)`."""
        seen: set[bytes] = set()
        found: list[bool] = []
        for store in self._stores:
            digests = [store.example(index).digest for index in range(len(store))]
            found += [digest in seen for digest in digests]
            seen.update(digests)
        return np.array(found, dtype=bool)

    @property
    def n_response(self) -> np.ndarray:
        return np.concatenate([store.n_response for store in self._stores])


def merged_notes(notes: Sequence[ReadingNotes]) -> ReadingNotes:
    """The notes of several sources together."""
    places: dict[str, list[str]] = {}
    for one in notes:
        for reason, found in one.places.items():
            places[reason] = [*places.get(reason, []), *found][:MAX_PLACES]
    n_bad = sum((Counter(one.n_bad) for one in notes), Counter())
    fields = sum((Counter(one.unread_fields) for one in notes), Counter())
    return ReadingNotes(sum(one.n_records for one in notes), n_bad, places, fields)


@dataclass(frozen=True)
class Mixture:
    """How often an epoch sees each data set: by `repeats`, or by `weights` of the examples that it sees.

    Weights keep the number of examples of an epoch, so a data set with a large weight is repeated and one with a small
    weight is seen in part, a different part every epoch. Fractions are drawn by the epoch's seed.
    """

    weights: Mapping[str, float] | None = None
    repeats: Mapping[str, float] | None = None

    def repeats_of(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """How often an epoch sees each example of every data set on average."""
        if self.weights is None:
            return {name: float((self.repeats or {}).get(name, 1.0)) for name in sizes}
        total, weight = sum(sizes.values()), sum(self.weights[name] for name in sizes)
        empty = [name for name, size in sizes.items() if size == 0 and self.weights[name] > 0]
        if empty:
            raise ConfigError(f"data.sets.{empty[0]}.weight={self.weights[empty[0]]}: no training example to repeat")
        return {name: self.weights[name] / weight * total / max(1, size) for name, size in sizes.items()}


@dataclass(frozen=True)
class Share:
    """What an epoch sees of one data set."""

    n_examples: int
    n_learnt_tokens: int
    repeats: float


def draw(parts: Sequence[tuple[np.ndarray, float]], random: np.random.Generator) -> np.ndarray:
    """The positions of one epoch: of each part (positions, repeats) whole rounds, and a fraction that is drawn."""
    drawn = []
    for positions, repeats in parts:
        n_rounds = int(repeats)
        n_rest = round((repeats - n_rounds) * len(positions))
        drawn += [positions] * n_rounds + [np.sort(random.choice(positions, n_rest, replace=False))]
    return np.concatenate(drawn)


@dataclass(eq=False)
class MixtureSampler(BatchSampler):
    """Yields batches of what `draw` gives of `parts`, as many in every epoch as in the first, which Lightning counts.

    Another draw may need another number of batches of `max_tokens`: batches are halved until there are enough, and
    those beyond the number are left out.
    """

    parts: Sequence[tuple[np.ndarray, float]] = ()
    _n_batches: int | None = None  # of every epoch

    def drawn(self, random: np.random.Generator) -> np.ndarray:
        return draw(self.parts, random)

    def _batches(self) -> list[list[int]]:
        if self._n_batches is None:
            self._n_batches = len(BatchSampler._batches(replace(self, epoch=0)))
        batches = super()._batches()
        del batches[self._n_batches :]
        while len(batches) < self._n_batches:
            longest = max(range(len(batches)), key=lambda n: len(batches[n]))
            half = len(batches[longest]) // 2
            batches[longest : longest + 1] = [batches[longest][:half], batches[longest][half:]]
        return batches


class MixtureData(InstructionData):
    """The data module of several data sets; each is filtered, encoded and split separately.

    Validation and test have one loader for each data set.
    """

    def __init__(
        self, sources: Mapping[str, Source], *args: Any, mixture: Mixture | None = None, **kwargs: Any
    ) -> None:
        super().__init__(next(iter(sources.values())), *args, **kwargs)
        self.names, self.sources, self.mixture = tuple(sources), tuple(sources.values()), mixture

    def _open_main(self) -> tuple[MixtureStore, Split]:
        store = MixtureStore({name: self._open(s) for name, s in zip(self.names, self.sources, strict=True)})
        sizes = np.diff(store.starts).tolist()
        splits = [make_split(size, self.split_spec, self.seed) for size in sizes]
        parts = {
            name: np.concatenate([getattr(s, name) + start for s, start in zip(splits, store.starts[:-1], strict=True)])
            for name in NAMES
        }
        duplicates = store.duplicates()
        self.split_counts = {"n_duplicates_across_sets": int(duplicates.sum())}
        return store, Split(**{name: part[~duplicates[part]] for name, part in parts.items()})

    def members(self, split: str) -> dict[str, np.ndarray]:
        """The indices of a split by data set; empty for a separate file."""
        store, indices = self.examples_of(split)
        if not isinstance(store, MixtureStore):
            return {}
        numbers = store.store_of(indices)
        found = {name: indices[numbers == number] for number, name in enumerate(store.names)}
        return {name: indices for name, indices in found.items() if len(indices)}

    def loader_names(self, split: str) -> list[str]:
        return list(self.members(split))

    def val_dataloader(self) -> ResumableLoader | list[ResumableLoader]:
        return self._loaders("val")

    def test_dataloader(self) -> ResumableLoader | list[ResumableLoader]:
        return self._loaders("test")

    def _loaders(self, split: str) -> ResumableLoader | list[ResumableLoader]:
        members = self.members(split)
        return [self._loader(split, indices) for indices in members.values()] if members else self._loader(split)

    def _sampler(self, split: str, indices: np.ndarray) -> BatchSampler:
        sampler, members = super()._sampler(split, indices), self.members(split)
        if split == "train" and self.mixture is not None and members:
            repeats = self.mixture.repeats_of({name: len(members.get(name, ())) for name in self.names})
            parts = [(np.searchsorted(self.split.train, m), repeats[name]) for name, m in members.items()]
            return MixtureSampler(**vars(sampler), parts=parts)
        return sampler

    def shares(self) -> dict[str, Share]:
        """What every training epoch sees of each data set."""
        store, members = self.stores["main"], self.members("train")
        assert isinstance(store, MixtureStore)
        random = np.random.default_rng((self.seed, 0))
        seen = self.split.train[self._sampler("train", self.split.train).drawn(random)]
        if len(seen) == 0:
            raise ConfigError("data.sets=…: weights or repeats leave no example for an epoch; raise them")
        numbers, n_response = store.store_of(seen), store.n_response[seen]
        found = {}
        for name, indices in members.items():
            of_set = numbers == self.names.index(name)
            n_seen = int(of_set.sum())
            found[name] = Share(n_seen, int(n_response[of_set].sum()), n_seen / len(indices))
        return found
