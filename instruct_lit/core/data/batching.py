"""Which examples train, validate and test, and which of them make which batch; both decided by a seed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from instruct_lit.core.data.collate import Batch
from instruct_lit.errors import ConfigError

NAMES = ("train", "val", "test")
# By name: a function of the lengths in random order `(n,)` and the size of a batch, in examples or tokens, that returns
# the positions of every batch. `none` is built in: batches of neighbours. `datasets` adds `length` and `best_fit`.
GROUPINGS: dict[str, Callable[[np.ndarray, int], list[np.ndarray]]] = {}


@dataclass(frozen=True)
class Split:
    """Disjoint indices of train, val and test, each in ascending order."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray

    def save(self, path: Path) -> None:
        """Write the indices as JSON."""
        path.write_text(json.dumps({name: getattr(self, name).tolist() for name in NAMES}))


def make_split(n_examples: int, spec: str | Mapping[str, float], seed: int) -> Split:
    """Split the indices below `n_examples`.

    `"book"` is the split of LLMs-from-scratch chapter 7: in file order 85 % train, 10 % test, the rest validation. A
    mapping gives a fraction (a float up to 1.0) or a count for each of train, val and test, drawn by seed; without
    train, train takes the rest.

    Raises: ConfigError for any other `spec`, and when a requested part would be empty.
    """
    if isinstance(spec, str):
        if spec != "book":
            raise ConfigError(f"data.split={spec}: allowed are 'book' and a mapping of train, val and test")
        n_train, n_test = int(n_examples * 0.85), int(n_examples * 0.1)
        order, requested = np.arange(n_examples), {*NAMES}
        sizes = {"train": n_train, "test": n_test, "val": n_examples - n_train - n_test}
    else:
        order, requested = np.random.default_rng(seed).permutation(n_examples), {"train", *spec}
        requested -= {name for name, share in spec.items() if share == 0}
        sizes = _sizes(n_examples, spec)
    parts, start = {}, 0
    for name, size in sizes.items():
        if size == 0 and name in requested:
            raise ConfigError(f"data.split={spec}: of {n_examples} examples none is left for {name}")
        parts[name] = np.sort(order[start : start + size])
        start += size
    return Split(**parts)


def _sizes(n_examples: int, spec: Mapping[str, Any]) -> dict[str, int]:
    """The number of examples of test, val and train, in the order in which they are drawn."""
    for name in sorted(set(spec) - set(NAMES)):
        raise ConfigError(f"data.split.{name}: allowed are {', '.join(NAMES)}")
    fractions = {}
    for name, share in spec.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < math.inf:
            raise ConfigError(f"data.split.{name}={share}: must be a fraction below 1 or a count")
        if share != int(share) and share > 1:
            raise ConfigError(f"data.split.{name}={share}: must be a fraction below 1 or a whole count")
        if 0 < share < 1 or (share == 1 and isinstance(share, float)):
            fractions[name] = share
    sizes = {
        name: int(fractions[name] * n_examples if name in fractions else spec.get(name, 0)) for name in NAMES[::-1]
    }
    rest = n_examples - sizes["test"] - sizes["val"]
    # Fractions that add up to 1 lose nothing to rounding: train takes the remainder.
    if "train" not in spec or ("train" in fractions and abs(sum(fractions.values()) - 1) < 1e-9):
        sizes["train"] = rest
    if sum(fractions.values()) > 1 + 1e-9 or sum(sizes.values()) > n_examples or rest < 0:
        raise ConfigError(f"data.split={spec}: more than the {n_examples} examples of the data")
    return sizes


class BatchSampler:
    """Yields lists of indices; the same (seed, epoch) always gives the same lists.

    `grouping` forms the batches, in random order (`GROUPINGS`), of `max_tokens` tokens where given instead of
    `batch_size` examples. Without shuffling the order is that of `indices`. Every example is seen exactly once, unless
    `draw` gives the positions in `indices` that an epoch sees.

    Over several ranks each global batch of `world_size` times that size is divided into parts, so that all ranks take
    the same number of steps; a part of the last one may be empty. In evaluation (`shuffle=False`) whole batches are
    distributed, at least one to each rank if there are enough examples.
    """

    draw: Callable[[np.random.Generator], np.ndarray] | None = None

    def __init__(
        self,
        indices: np.ndarray,
        lengths: np.ndarray,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        grouping: str = "none",
        max_tokens: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if grouping not in ("none", *GROUPINGS):
            raise ConfigError(f"batching.grouping={grouping}: allowed are {', '.join(('none', *GROUPINGS))}")
        self.indices, self.lengths = np.asarray(indices), np.asarray(lengths)
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.grouping, self.max_tokens, self.rank, self.world_size = grouping, max_tokens, rank, world_size
        self.epoch = 0
        self.n_skip = 0  # batches that the next iteration skips: they were seen before a resume
        self._cached: list[list[int]] = []
        self._cached_epoch: int | None = None

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches()[self.n_skip :])

    def __len__(self) -> int:
        return len(self._batches())

    def _batches(self) -> list[list[int]]:
        """This rank's batches of the epoch, cut out of those of all ranks together."""
        if self._cached_epoch == self.epoch:
            return self._cached
        random = np.random.default_rng((self.seed, self.epoch))
        order = np.arange(len(self.indices)) if self.draw is None else self.draw(random)
        size = (self.max_tokens or self.batch_size) * self.world_size
        if self.shuffle:
            order = order[random.permutation(len(order))]
        else:
            size = min(self.batch_size, max(1, len(order) // self.world_size))
        if self.grouping == "none":
            batches = [order[i : i + size] for i in range(0, len(order), size)]
        else:
            batches = [order[batch] for batch in GROUPINGS[self.grouping](self.lengths[order], size)]
            batches = [batches[i] for i in random.permutation(len(batches))] if self.shuffle else batches
        mine = slice(self.rank, None, self.world_size)
        batches = [batch[mine] for batch in batches] if self.shuffle else batches[mine]
        self._cached, self._cached_epoch = [self.indices[batch].tolist() for batch in batches], self.epoch
        return self._cached


class ResumableLoader(DataLoader):
    """A DataLoader whose state is its position, so that a resumed run continues with the next batch."""

    n_yielded = 0
    _n_skip = 0
    batch_sampler: BatchSampler

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.n_yielded, self._n_skip = self._n_skip, 0
        self.batch_sampler.n_skip = self.n_yielded
        for batch in super().__iter__():
            self.n_yielded += 1
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch, which decides the order of the batches."""
        self.batch_sampler.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """Epoch, and how many of its batches were yielded."""
        return {"epoch": self.batch_sampler.epoch, "n_yielded": self.n_yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue there with the next iteration."""
        at_end = state["n_yielded"] >= len(self)  # after its last batch an epoch is followed by the next
        self.set_epoch(state["epoch"] + at_end)
        self._n_skip = 0 if at_end else state["n_yielded"]
