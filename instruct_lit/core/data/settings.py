"""What a data module is given: where examples come from, and its settings in groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from instruct_lit.core.data.batching import Grouping
from instruct_lit.core.data.collate import Layout
from instruct_lit.core.data.encode import LossOn, OnLong
from instruct_lit.core.data.example import Example


class Source(Protocol):
    """Where examples come from; after an iteration `n_skipped` counts the bad records."""

    name: str

    @property
    def n_skipped(self) -> int: ...
    def fingerprint(self) -> str: ...
    def __iter__(self) -> Iterator[Example]: ...


class ExampleFilter(Protocol):
    """Drops examples before they are encoded; after an iteration `counts` says how many and why."""

    counts: Mapping[str, int]

    def __call__(self, examples: Iterable[Example]) -> Iterator[Example]: ...
    def fingerprints(self) -> list[str]: ...


@dataclass(frozen=True)
class Lengths:
    """How long an example may be, in tokens, and how many inputs a row has (default: those of its longest example)."""

    max_length: int
    on_long: OnLong = "truncate"
    pad_to: int | None = None


@dataclass(frozen=True)
class Splits:
    """How the examples are split (`batching.make_split`).

    `groups` numbers texts; examples whose prompts have the same number stay in one part. `files` are separate sources
    for `val` and `test`.
    """

    spec: str | Mapping[str, float] = "book"
    groups: Callable[[Iterable[str]], np.ndarray] | None = None
    files: Mapping[str, Source] = field(default_factory=dict)


@dataclass(frozen=True)
class Masking:
    """Which tokens are trained on: responses, or with `mask_prompt=False` prompts too; all turns or the last."""

    mask_prompt: bool = True
    loss_on: LossOn = "all"


@dataclass(frozen=True)
class Batching:
    """How batches are made (`BatchSampler`, `Collator`); beside `batch_size` nothing here changes a loss."""

    batch_size: int = 8
    eval_batch_size: int | None = None
    grouping: Grouping = "none"
    max_tokens: int | None = None
    layout: Layout = "padded"
    shared_prefix: bool = False
    pad_to_multiple_of: int = 1
    n_workers: int = 0
