"""What a data module is given: where examples come from, and its settings in groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from instruct_lit.core.data.batching import Layout
from instruct_lit.core.data.encode import EncodedStore, LossOn, OnLong
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.records import ReadingNotes

NAMES = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Disjoint indices of train, val and test, each in ascending order."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


class Source(Protocol):
    """Where examples come from; after an iteration `notes` says what was skipped."""

    name: str

    @property
    def notes(self) -> ReadingNotes: ...
    def fingerprint(self) -> str: ...
    def __iter__(self) -> Iterator[Example]: ...


class ExampleFilter(Protocol):
    """Drops examples before they are encoded; after an iteration `counts` says how many and why."""

    counts: Mapping[str, int]

    def __call__(self, examples: Iterable[Example]) -> Iterator[Example]: ...
    def fingerprints(self) -> list[str]: ...


# From a split, the stores, whether their examples may be moved, and the folder and the fingerprint of caches to a split
# with related examples in one part, and counts of what was moved.
Regroup = Callable[[Split, Mapping[str, EncodedStore], bool, Path, str], tuple[Split, dict[str, int]]]


@dataclass(frozen=True)
class Lengths:
    """How long an example may be, in tokens, and how many inputs a row has (default: those of its longest example)."""

    max_length: int
    on_long: OnLong = "truncate"
    pad_to: int | None = None


@dataclass(frozen=True)
class Splits:
    """How the examples are split (`datamodule.make_split`); `files` are separate sources for `val` and `test`."""

    spec: str | Mapping[str, float] = "book"
    regroup: Regroup | None = None
    files: Mapping[str, Source] = field(default_factory=dict)


@dataclass(frozen=True)
class Masking:
    """Which tokens are trained on: responses, with `mask_prompt=False` prompts too, weighted; all turns or the last."""

    mask_prompt: bool = True
    loss_on: LossOn = "all"
    prompt_weight: float = 1.0


@dataclass(frozen=True)
class Batching:
    """How batches are made (`BatchSampler`, `Collator`); beside `batch_size` nothing here changes a loss."""

    batch_size: int = 8
    eval_batch_size: int | None = None
    grouping: str = "none"
    max_tokens: int | None = None
    layout: Layout = "padded"
    shared_prefix: bool = False
    pad_to_multiple_of: int = 1
    n_workers: int = 0
    # Returns what is used, given these settings and the number of inputs of the longest example.
    choose: Callable[[Batching, int], Batching] = field(default=lambda batching, longest: batching, repr=False)
