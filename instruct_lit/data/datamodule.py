"""The data of one run as a LightningDataModule: source → split → encoded store → batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from instruct_lit.data.collate import Batch, Collator, Layout
from instruct_lit.data.encode import EncodedExample, Encoder, LossOn, OnLong, Tokenizer
from instruct_lit.data.example import Example
from instruct_lit.data.sampler import BatchSampler, Grouping
from instruct_lit.data.sources import deduplicated
from instruct_lit.data.split import Split, make_split
from instruct_lit.data.store import EncodedStore, open_or_build
from instruct_lit.data.template import Template

STORE_VERSION = 2  # part of every key: raise it when the meaning of a store's files changes


class Source(Protocol):
    """Where examples come from."""

    name: str
    n_skipped: int

    def fingerprint(self) -> str: ...
    def prepare(self) -> None: ...
    def __iter__(self) -> Iterator[Example]: ...


class InstructionData(LightningDataModule):
    """Train, validation and test batches of one data set.

    `test_source` and `val_source` replace a split by a file of its own. `grouping`, `layout`, `shared_prefix` and
    `max_tokens` are the batch layout (`conf/batching`); none of them changes a loss.
    """

    def __init__(
        self,
        source: Source,
        template: Template,
        tokenizer: Tokenizer,
        cache_dir: Path,
        *,
        max_length: int,
        split: Any = "book",
        seed: int = 0,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        mask_prompt: bool = True,
        loss_on: LossOn = "all",
        on_long: OnLong = "truncate",
        pad_to: int | None = None,
        layout: Layout = "padded",
        shared_prefix: bool = False,
        grouping: Grouping = "none",
        max_tokens: int | None = None,
        n_workers: int = 0,
        test_source: Source | None = None,
        val_source: Source | None = None,
    ) -> None:
        super().__init__()
        self.sources = {"main": source, "test": test_source, "val": val_source}
        self.template, self.tokenizer, self.cache_dir = template, tokenizer, cache_dir
        self.max_length, self.on_long, self.loss_on = max_length, on_long, loss_on
        self.split_spec, self.seed = split, seed
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.grouping, self.max_tokens, self.n_workers = grouping, max_tokens, n_workers
        self.collator = Collator(
            tokenizer.eot_id, tokenizer.n_bytes_of, layout, shared_prefix, mask_prompt, pad_to=pad_to
        )
        self.stores: dict[str, EncodedStore] = {}
        self._train_loader: ResumableLoader | None = None
        self._resume_from: dict[str, int] | None = None

    def prepare_data(self) -> None:
        """Download and encode; Lightning calls it on one process only."""
        for source in self.sources.values():
            if source is not None:
                source.prepare()
                self._open(source)

    def setup(self, stage: str | None = None) -> None:
        """Open the encoded stores and split them."""
        if self.stores:
            return
        self.stores = {name: self._open(source) for name, source in self.sources.items() if source is not None}
        main = self.stores["main"]
        own_file = {name for name in ("test", "val") if name in self.stores}
        self.split: Split = make_split(len(main), _without(self.split_spec, own_file), self.seed)

    def examples_of(self, split: str) -> tuple[EncodedStore, np.ndarray]:
        """The store and the indices in it that make up `train`, `val` or `test`."""
        if split in self.stores:
            return self.stores[split], np.arange(len(self.stores[split]))
        return self.stores["main"], getattr(self.split, split)

    def train_dataloader(self) -> DataLoader[Batch]:
        self._train_loader = self._loader("train")
        if self._resume_from is not None:
            self._train_loader.load_state_dict(self._resume_from)
            self._resume_from = None
        return self._train_loader

    # Lightning restores a loader's own state only if no loader was made before, which the schedule's length needs.
    def state_dict(self) -> dict[str, int]:
        """How far the training data have been read."""
        return self._train_loader.state_dict() if self._train_loader is not None else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next training loader go on from there."""
        self._resume_from = state_dict or None

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader("test")

    @property
    def fingerprint(self) -> str:
        """Identifies records, template, tokenizer and length settings together."""
        return "-".join(self._key(source) for source in self.sources.values() if source is not None)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the training batches have."""
        if self.trainer is not None and self.trainer.train_dataloader is not None:
            self.trainer.train_dataloader.batch_sampler.set_epoch(epoch)

    def _loader(self, split: str) -> ResumableLoader:
        store, indices = self.examples_of(split)
        train = split == "train"
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        # In evaluation long examples stand together: the result is a sum, so the order does not matter.
        order = indices if train else indices[np.argsort(-store.lengths[indices], kind="stable")]
        sampler = BatchSampler(
            order,
            store.lengths[order],
            self.batch_size if train else self.eval_batch_size,
            shuffle=train,
            seed=self.seed,
            grouping=self.grouping if train else "none",
            max_tokens=self.max_tokens if train else None,
            rank=rank,
            world_size=world_size,
        )
        return ResumableLoader(
            _Examples(store),
            batch_sampler=sampler,
            collate_fn=self.collator,
            num_workers=self.n_workers,
            persistent_workers=self.n_workers > 0,
            pin_memory=self.trainer is not None and self.trainer.accelerator.name() == "cuda",
        )

    def _open(self, source: Source) -> EncodedStore:
        examples = deduplicated(source)
        encoder = Encoder(self.template, self.tokenizer, self.max_length, self.on_long, self.loss_on)
        return open_or_build(
            Path(self.cache_dir),
            self._key(source),
            examples,
            encoder,
            lambda: {"n_bad_records": source.n_skipped, "n_duplicates": examples.n_dropped},
        )

    def _key(self, source: Source) -> str:
        facts = {
            "version": STORE_VERSION,
            "source": source.fingerprint(),
            "template": [self.template.text, self.template.next_turn and self.template.next_turn.text],
            "tokenizer": self.tokenizer.fingerprint,
            "max_length": self.max_length,
            "on_long": self.on_long,
            "loss_on": self.loss_on,
        }
        return f"{source.name}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}"


class ResumableLoader(DataLoader):
    """A DataLoader whose state tells how far it got, so that a resumed run goes on with the next batch."""

    n_yielded = 0
    _n_skip = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.n_yielded, self._n_skip = self._n_skip, 0
        self.batch_sampler.n_skip = self.n_yielded  # type: ignore[union-attr]
        for batch in super().__iter__():
            self.n_yielded += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.batch_sampler.epoch, "n_yielded": self.n_yielded}  # type: ignore[union-attr]

    def load_state_dict(self, state: dict[str, int]) -> None:
        at_end = state["n_yielded"] >= len(self)  # after its last batch an epoch gives way to the next
        self.batch_sampler.set_epoch(state["epoch"] + at_end)  # type: ignore[union-attr]
        self._n_skip = 0 if at_end else state["n_yielded"]


class _Examples(Dataset[EncodedExample]):
    def __init__(self, store: EncodedStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> EncodedExample:
        return self.store[index]


def _without(spec: Any, names: Collection[str]) -> Any:
    """The split without the parts that come from files of their own."""
    if isinstance(spec, str) or not names:
        return spec
    return {name: (0 if name in names else share) for name, share in dict(spec).items()}
