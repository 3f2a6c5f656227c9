"""Which examples train, validate and test, and which of them make which batch; both decided by a seed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.utils.data import DataLoader

from instruct_lit.core.data.collate import Batch
from instruct_lit.core.data.example import words
from instruct_lit.errors import ConfigError

NAMES = ("train", "val", "test")
Grouping = Literal["none", "length", "best_fit"]
MEGABATCH = (
    50  # batches whose examples are sorted by length together: enough to match lengths, few enough to stay random
)


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
    mapping gives a fraction (below 1) or a count for each of train, val and test, drawn by seed; without train, train
    takes the rest.

    Raises: ConfigError for any other `spec`, and when a requested part would be empty.
    """
    if isinstance(spec, str):
        if spec != "book":
            raise ConfigError(f"data.split={spec}: allowed are 'book' and a mapping of train, val and test")
        n_train, n_test = int(n_examples * 0.85), int(n_examples * 0.1)
        order = np.arange(n_examples)
        sizes = {"train": n_train, "test": n_test, "val": n_examples - n_train - n_test}
        order_of_parts = ("train", "test", "val")
    else:
        sizes = _sizes(n_examples, dict(spec))
        order = np.random.default_rng(seed).permutation(n_examples)
        order_of_parts = ("test", "val", "train")
    parts, start = {}, 0
    for name in order_of_parts:
        if sizes[name] == 0 and (isinstance(spec, str) or spec.get(name, 1 if name == "train" else 0) != 0):
            raise ConfigError(f"data.split={spec}: of {n_examples} examples none is left for {name}")
        parts[name] = np.sort(order[start : start + sizes[name]])
        start += sizes[name]
    return Split(**parts)


def _sizes(n_examples: int, spec: dict[str, Any]) -> dict[str, int]:
    unknown = set(spec) - set(NAMES)
    if unknown:
        raise ConfigError(f"data.split.{sorted(unknown)[0]}: allowed are {', '.join(NAMES)}")
    for name, share in spec.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < math.inf:
            raise ConfigError(f"data.split.{name}={share}: must be a fraction below 1 or a count")
        if isinstance(share, float) and share >= 1 and share != int(share):
            raise ConfigError(f"data.split.{name}={share}: must be a fraction below 1 or a whole count")
    sizes = {name: int(share * n_examples) if 0 < share < 1 else int(share) for name, share in spec.items()}
    fractions = sum(share for share in spec.values() if 0 < share < 1)
    rest = n_examples - sum(sizes.get(name, 0) for name in ("val", "test"))
    # Fractions that add up to 1 lose nothing to rounding: train takes the remainder.
    if "train" not in sizes or (0 < spec["train"] < 1 and abs(fractions - 1) < 1e-9):
        sizes["train"] = rest
    if fractions > 1 + 1e-9 or sum(sizes.values()) > n_examples or rest < 0:
        raise ConfigError(f"data.split={spec}: more than the {n_examples} examples of the data")
    return {name: sizes.get(name, 0) for name in NAMES}


def same_prompt(texts: Iterable[str]) -> np.ndarray:
    """A group number for each text `(n,)`: texts with the same words share one."""
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(" ".join(words(text)), len(seen)) for text in texts], dtype=np.int64)


def keep_together(
    split: Split, groups: np.ndarray, elsewhere: Collection[int], movable: bool
) -> tuple[Split, dict[str, int]]:
    """The split with every group of examples in one part, and how many examples were moved or left out for that.

    A group that lies in several parts moves to train as a whole, so that nothing held out was trained on. Examples of a
    group in `elsewhere` (separate test or validation files) are left out of every part. With `movable` false (the
    book's split is in file order) the split stays unchanged, and what would have been moved is counted.
    """
    parts = {name: getattr(split, name) for name in NAMES}
    part_of = np.full(len(groups), -1)
    for number, members in enumerate(parts.values()):
        part_of[members] = number
    left_out = (part_of >= 0) & np.isin(groups, np.array(sorted(elsewhere), dtype=np.int64))
    in_train, in_val, in_test = (groups[(part_of == number) & ~left_out] for number in range(len(NAMES)))
    shared = np.concatenate([in_train, np.intersect1d(in_val, in_test)])
    moved = (part_of > 0) & ~left_out & np.isin(groups, shared)
    if not movable:
        return split, {"n_straddling": int(moved.sum() + left_out.sum())}
    counts = {"n_moved_to_train": int(moved.sum())}
    counts |= {f"n_left_out_of_{name}": int(left_out[members].sum()) for name, members in parts.items()}
    part_of[moved], part_of[left_out] = 0, -1
    kept = {name: np.flatnonzero(part_of == number) for number, name in enumerate(NAMES)}
    for name, members in parts.items():
        if len(kept[name]) == 0 and len(members) > 0:
            raise ConfigError(
                f"data.split: every example for {name} has a near-duplicate in another part; give more examples, or "
                "data.keep_together=nothing"
            )
    return Split(**kept), counts


class BatchSampler:
    """Yields lists of indices; the same (seed, epoch) always gives the same lists.

    `grouping="length"` batches examples of similar length (Hugging Face's group_by_length), batches in random order.
    `grouping="best_fit"` fills each batch up to `max_tokens` instead of `batch_size` (best-fit decreasing); an example
    above the budget is a batch of its own. Without shuffling the order is that of `indices`.

    Over several ranks each global batch of `batch_size · world_size` examples (or of `world_size` token budgets) is
    divided into `world_size` parts, so that all ranks take the same number of steps; a part of the last one may be
    empty. In evaluation (`shuffle=False`) whole batches are distributed, at least one to each rank if there are enough
    examples. Every example is seen exactly once, unless `draw` gives the positions in `indices` that an epoch sees.
    """

    draw: Callable[[np.random.Generator], np.ndarray] | None = None

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
    ) -> None:
        assert (grouping == "best_fit") == (max_tokens is not None), "max_tokens is the budget of best_fit"
        self.indices, self.lengths = np.asarray(indices), np.asarray(lengths)
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.grouping, self.max_tokens = grouping, max_tokens
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.n_skip = 0  # batches that the next iteration skips: they were seen before a resume
        self._cached_epoch: int | None = None

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches()[self.n_skip :])

    def __len__(self) -> int:
        return len(self._batches())

    def _batches(self) -> list[list[int]]:
        if self._cached_epoch != self.epoch:
            batches = self._global_batches()
            if self.shuffle:
                batches = [batch[self.rank :: self.world_size] for batch in batches]
            else:
                batches = batches[self.rank :: self.world_size]
            self._cached, self._cached_epoch = [self.indices[batch].tolist() for batch in batches], self.epoch
        return self._cached

    def _global_batches(self) -> list[np.ndarray]:
        """The batches of all ranks together, as positions in `indices`."""
        random = np.random.default_rng((self.seed, self.epoch))
        order = np.arange(len(self.indices)) if self.draw is None else self.draw(random)
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


def best_fit_decreasing(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[np.ndarray]:
    """Pack items into few bins: longest first, each into the fullest bin that has room (Johnson 1973).

    Returns the item numbers of every bin, each item exactly once; an item above the capacity is alone in its bin.
    """
    lengths = np.asarray(lengths)
    bins: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # bins by free capacity, which is a small integer
    rooms = np.zeros(capacity + 1, dtype=bool)
    for item in np.argsort(-lengths, kind="stable"):
        length = int(lengths[item])
        if length > capacity:
            bins.append([int(item)])
            continue
        fitting = rooms[length:].argmax() + length  # the smallest sufficient room, if there is one
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
