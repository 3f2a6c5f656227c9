"""The loader of encoded examples, which can go on in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from instruct_lit.core.data.collate import Batch
from instruct_lit.core.data.encode import EncodedExample
from instruct_lit.core.data.store import EncodedStore
from instruct_lit.datasets.mixture import MixtureStore


class ResumableLoader(DataLoader):
    """A DataLoader whose state tells how far it got, so that a resumed run goes on with the next batch."""

    n_yielded = 0
    _n_skip = 0

    def __init__(self, dataset: Dataset[EncodedExample], **options: Any) -> None:
        # Its own generator, so that starting an epoch draws nothing from the state that a resumed run takes up again.
        super().__init__(dataset, generator=torch.Generator(), **options)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.n_yielded, self._n_skip = self._n_skip, 0
        self.batch_sampler.n_skip = self.n_yielded  # type: ignore[union-attr]
        for batch in super().__iter__():
            self.n_yielded += 1
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.batch_sampler.epoch, "n_yielded": self.n_yielded}  # type: ignore[union-attr]

    def load_state_dict(self, state: dict[str, int]) -> None:
        at_end = state["n_yielded"] >= len(self)  # after its last batch an epoch gives way to the next
        self.set_epoch(state["epoch"] + at_end)
        self._n_skip = 0 if at_end else state["n_yielded"]


class StoredExamples(Dataset[EncodedExample]):
    """The examples of a store by their index."""

    def __init__(self, store: EncodedStore | MixtureStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> EncodedExample:
        return self.store[index]
