"""Which examples make which batch: shuffled by seed and epoch, grouped by length or packed to a token budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from instruct_lit.datasets.mixture import draw

Grouping = Literal["none", "length", "best_fit"]
MEGABATCH = 50  # batches among which examples are grouped by length: enough to match lengths, few enough to stay random


class BatchSampler:
    """Yields lists of indices; the same (seed, epoch) always gives the same lists, whatever came before.

    `grouping="length"` puts examples of similar length together (Hugging Face's group_by_length), batches in random
    order. `grouping="best_fit"` fills each batch up to `max_tokens` instead of `batch_size` (best-fit decreasing); an
    example above the budget makes a batch of its own. Without shuffling the order is that of `indices`.

    Over several ranks each global batch of `batch_size · world_size` examples (or of `world_size` token budgets) is cut
    into `world_size` parts, so that all ranks take the same number of steps; a part of the last one may be empty. In
    evaluation (`shuffle=False`) whole batches are dealt out, at least one to each rank if there are examples enough.
    Every example is seen exactly once, or with `parts` (positions in `indices`, how often an epoch sees them) as often
    as they say; the epoch then draws its examples as `joined.draw` does.
    """

    def __init__(
        self,
        indices: np.ndarray,
        lengths: np.ndarray,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        grouping: Grouping = "none",
        max_tokens: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        parts: Sequence[tuple[np.ndarray, float]] | None = None,
    ) -> None:
        assert (grouping == "best_fit") == (max_tokens is not None), "best-fit grouping is what a token budget is for"
        self.indices, self.lengths = np.asarray(indices), np.asarray(lengths)
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.grouping, self.max_tokens = grouping, max_tokens
        self.rank, self.world_size, self.parts = rank, world_size, parts
        self.epoch = 0
        self.n_skip = 0  # batches that an iteration leaves out: they were seen before a resume
        self._made_for: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches()[self.n_skip :])

    def __len__(self) -> int:
        return len(self._batches())

    def _batches(self) -> list[list[int]]:
        if self._made_for != self.epoch:
            self._cached = self._deal(self._global_batches())
            self._made_for = self.epoch
        return self._cached

    def _global_batches(self) -> list[np.ndarray]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = self.positions(random)
        if self.shuffle:
            order = order[random.permutation(len(order))]
        size = self.batch_size * self.world_size
        if not self.shuffle:
            size = min(self.batch_size, max(1, len(order) // self.world_size))
        if self.grouping == "best_fit":
            assert self.max_tokens is not None
            batches = best_fit_decreasing(self.lengths[order], self.max_tokens * self.world_size)
            batches = [order[batch] for batch in batches]
        elif self.grouping == "length":
            pools = [order[i : i + size * MEGABATCH] for i in range(0, len(order), size * MEGABATCH)]
            by_length = [pool[np.argsort(-self.lengths[pool], kind="stable")] for pool in pools]
            batches = [pool[i : i + size] for pool in by_length for i in range(0, len(pool), size)]
        else:
            return [order[i : i + size] for i in range(0, len(order), size)]
        if self.shuffle:
            batches = [batches[i] for i in random.permutation(len(batches))]
        return batches

    def positions(self, random: np.random.Generator) -> np.ndarray:
        """What the epoch sees, as positions in `indices`."""
        return np.arange(len(self.indices)) if self.parts is None else draw(self.parts, random)

    def _deal(self, batches: list[np.ndarray]) -> list[list[int]]:
        if self.world_size == 1:
            return [self.indices[batch].tolist() for batch in batches]
        if not self.shuffle:
            return [self.indices[batch].tolist() for batch in batches[self.rank :: self.world_size]]
        return [self.indices[batch[self.rank :: self.world_size]].tolist() for batch in batches]


def best_fit_decreasing(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[np.ndarray]:
    """Pack items into few bins: longest first, each into the fullest bin that has room (Johnson 1973).

    Returns the item numbers of every bin, each item exactly once; an item above the capacity is alone in its bin.
    """
    lengths = np.asarray(lengths)
    bins: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # bins by room left; capacities are small integers
    rooms = np.zeros(capacity + 1, dtype=bool)
    for item in np.argsort(-lengths, kind="stable"):
        length = int(lengths[item])
        if length > capacity:
            bins.append([int(item)])
            continue
        fitting = rooms[length:].argmax() + length  # the smallest room that is enough, if there is one
        if rooms[fitting] and fitting >= length:
            number = by_room[fitting].pop()
            rooms[fitting] = bool(by_room[fitting])
            room = int(fitting)
        else:
            number, room = len(bins), capacity
            bins.append([])
        bins[number].append(int(item))
        by_room[room - length].append(number)
        rooms[room - length] = True
    return [np.array(members) for members in bins]
