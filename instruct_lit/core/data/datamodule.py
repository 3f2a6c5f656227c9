"""The data of one run as a LightningDataModule: source → split → encoded store → batches."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from instruct_lit.core.data.batching import BatchSampler, Grouping
from instruct_lit.core.data.collate import Batch, Collator, Layout
from instruct_lit.core.data.encode import Encoder, LossOn, OnLong, Tokenizer
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.loader import ResumableLoader, StoredExamples
from instruct_lit.core.data.sources import deduplicated
from instruct_lit.core.data.split import Split, joined, kept_together, make_split, same_prompt
from instruct_lit.core.data.store import EncodedStore, open_or_build
from instruct_lit.core.data.template import Template
from instruct_lit.datasets.filters import Filter, filtered, questions
from instruct_lit.datasets.mixture import Mixture, MixtureStore, Share
from instruct_lit.datasets.near_duplicates import near_duplicate_groups
from instruct_lit.errors import ConfigError

STORE_VERSION = 2  # part of every key: raise it when the meaning of a store's files changes


class Source(Protocol):
    """Where examples come from."""

    name: str
    n_skipped: int

    def fingerprint(self) -> str: ...
    def prepare(self) -> None: ...
    def __iter__(self) -> Iterator[Example]: ...


class InstructionData(LightningDataModule):
    """Train, validation and test batches of one data set, or of a mixture of several.

    Each set is filtered (`filters`), encoded and split on its own; `mixture` says how often an epoch sees each.
    `keep_together` keeps examples with the same prompt, or a near-duplicate of it, on one side of the split.
    `test_source` and `val_source` replace a split by a file of its own, which is not filtered. `grouping`, `layout`,
    `shared_prefix`, `max_tokens` and `pad_to_multiple_of` are the batch layout (`conf/batching`); none changes a loss.
    """

    stored_parts: tuple[str, ...] = ("train", "val", "test")  # whose examples are known before the run

    def __init__(
        self,
        source: Source | Mapping[str, Source],
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
        pad_to_multiple_of: int = 1,
        n_workers: int = 0,
        test_source: Source | None = None,
        val_source: Source | None = None,
        filters: Sequence[Filter] = (),
        keep_together: str = "nothing",
        mixture: Mixture | None = None,
    ) -> None:
        super().__init__()
        self.sets: dict[str, Source] = dict(source) if isinstance(source, Mapping) else {source.name: source}
        self.own_files = {k: v for k, v in (("test", test_source), ("val", val_source)) if v is not None}
        self.filters, self.keep_together, self.mixture = list(filters), keep_together, mixture
        self.template, self.tokenizer, self.cache_dir = template, tokenizer, cache_dir
        self.max_length, self.on_long, self.loss_on = max_length, on_long, loss_on
        self.split_spec, self.seed = split, seed
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.grouping, self.max_tokens, self.n_workers = grouping, max_tokens, n_workers
        self.collator = Collator(
            tokenizer.eot_id, tokenizer.n_bytes_of, layout, shared_prefix, mask_prompt, pad_to, pad_to_multiple_of
        )
        self.stores: dict[str, EncodedStore | MixtureStore] = {}
        self.split_counts: dict[str, int] = {}
        self._train_loader: ResumableLoader | None = None
        self._resume_from: dict[str, int] | None = None

    def prepare_data(self) -> None:
        """Download and encode; Lightning calls it on one process only."""
        for source in (*self.sets.values(), *self.own_files.values()):
            source.prepare()
            self._open(source)

    def setup(self, stage: str | None = None) -> None:
        """Open the encoded stores and split them."""
        if self.stores:
            return
        sets = {name: self._open(source) for name, source in self.sets.items()}
        main = MixtureStore(sets) if len(sets) > 1 else next(iter(sets.values()))
        self.stores = {"main": main, **{name: self._open(source) for name, source in self.own_files.items()}}
        self._check_pad_to(max(int(store.lengths.max()) for store in self.stores.values()))
        spec = _without(self.split_spec, self.own_files)
        parts = [make_split(len(store), spec, self.seed) for store in sets.values()]
        split = joined(parts, main.starts[:-1].tolist()) if isinstance(main, MixtureStore) else parts[0]
        counts = {}
        if isinstance(main, MixtureStore):
            again = main.repeated()
            split = Split(*(part[~again[part]] for part in (split.train, split.val, split.test)))
            counts = {"n_duplicates_across_sets": int(again.sum())}
        self.split: Split = split
        if self.keep_together != "nothing":
            own, *others = np.split(self._groups(), np.cumsum([len(store) for store in self.stores.values()])[:-1])
            elsewhere = set(np.concatenate([own[:0], *others]).tolist())
            self.split, moved = kept_together(split, own, elsewhere, self.split_spec != "book")
            counts |= moved
            if len(others) > 1:  # a file for validation and one for test: theirs stay as they are
                counts["n_straddling"] = counts.get("n_straddling", 0) + int(np.isin(others[0], others[1]).sum())
        self.split_counts = counts

    def _check_pad_to(self, longest: int) -> None:
        """Raise ConfigError when an example of so many tokens is longer than the rows."""
        pad_to = self.collator.pad_to
        if pad_to is not None and longest - 1 > pad_to:
            raise ConfigError(
                f"data.pad_to={pad_to}: an example has {longest - 1} inputs; raise it, or lower data.max_length to "
                f"{pad_to + 1}"
            )

    def _groups(self) -> np.ndarray:
        """The group of every example of all stores, kept beside the encoded stores."""
        facts = f"{self.fingerprint} {self.keep_together}"
        file = Path(self.cache_dir) / "encoded" / f"groups-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.npy"
        if not file.exists():
            examples = (store.example(i) for store in self.stores.values() for i in range(len(store)))
            group = same_prompt if self.keep_together == "same_prompt" else near_duplicate_groups
            groups = group(questions(e) or e.output for e in examples)
            with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".npy", delete=False) as temporary:
                np.save(temporary, groups)
            os.replace(temporary.name, file)
        return np.load(file)

    @property
    def counts(self) -> dict[str, int]:
        """How many examples are left in each part of the split, and what became of the others."""
        left = {f"n_{name}": len(self.examples_of(name)[1]) for name in ("train", "val", "test")}
        lost = {**self.stores["main"].counts, **self.split_counts}
        return left | {name: n for name, n in lost.items() if n and name != "n_encoded"}

    def sets_in(self, split: str) -> dict[str, np.ndarray]:
        """The indices of a split by set, for a mixture; empty for a single set and for a file of its own."""
        store, indices = self.examples_of(split)
        if not isinstance(store, MixtureStore):
            return {}
        numbers = store.set_of(indices)
        found = {name: indices[numbers == number] for number, name in enumerate(store.names)}
        return {name: members for name, members in found.items() if len(members)}

    def shares(self) -> dict[str, Share]:
        """What every training epoch sees of each set of a mixture."""
        members = self.sets_in("train")
        if not members:
            return {}
        sampler, store = self._sampler("train", self.split.train), self.stores["main"]
        seen = self.split.train[sampler.positions(np.random.default_rng((self.seed, 0)))]
        numbers, learnt = store.set_of(seen), store.n_response[seen]  # type: ignore[union-attr]
        found = {}
        for name in members:
            of_set = numbers == list(self.sets).index(name)
            n_seen = int(of_set.sum())
            found[name] = Share(n_seen, int(learnt[of_set].sum()), n_seen / len(members[name]))
        return found

    def examples_of(self, split: str) -> tuple[EncodedStore | MixtureStore, np.ndarray]:
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

    def val_dataloader(self) -> DataLoader[Batch] | list[ResumableLoader]:
        return self._evaluation_loaders("val")

    def test_dataloader(self) -> DataLoader[Batch] | list[ResumableLoader]:
        return self._evaluation_loaders("test")

    def _evaluation_loaders(self, split: str) -> ResumableLoader | list[ResumableLoader]:
        """One loader, or of a mixture one for each set, in the order of `sets_in`."""
        sets = self.sets_in(split)
        return [self._loader(split, members) for members in sets.values()] if sets else self._loader(split)

    @property
    def fingerprint(self) -> str:
        """Identifies records, template, tokenizer and length settings together."""
        return "-".join(self._key(source) for source in (*self.sets.values(), *self.own_files.values()))

    def facts(self) -> dict[str, str]:
        """What `fingerprint` is made of, one by one, for a message that says which of them differs."""
        sources = (*self.sets.values(), *self.own_files.values())
        facts = [self._facts(source) for source in sources]
        return {
            "data": "+".join(
                f"{s.name}-{_short([f['source'], f['filters']])}" for s, f in zip(sources, facts, strict=True)
            ),
            "data.sets": str(self.mixture),
            "template": f"{self.template.name}-{_short(facts[0]['template'])}",
            "tokenizer": self.tokenizer.fingerprint[:16],
            **{f"data.{name}": str(facts[0][name]) for name in ("max_length", "on_long", "loss_on")},
        }

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the training batches have."""
        if self.trainer is not None and self.trainer.train_dataloader is not None:
            self.trainer.train_dataloader.set_epoch(epoch)

    def _loader(self, split: str, indices: np.ndarray | None = None) -> ResumableLoader:
        store, every = self.examples_of(split)
        return ResumableLoader(
            StoredExamples(store),
            batch_sampler=self._sampler(split, every if indices is None else indices),
            collate_fn=self.collator,
            num_workers=self.n_workers,
            persistent_workers=self.n_workers > 0,
            pin_memory=self.trainer is not None and self.trainer.accelerator.name() == "cuda",
        )

    def _sampler(self, split: str, indices: np.ndarray) -> BatchSampler:
        store, train = self.examples_of(split)[0], split == "train"
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        # In evaluation long examples stand together: the result is a sum, so the order does not matter.
        order = indices if train else indices[np.argsort(-store.lengths[indices], kind="stable")]
        return BatchSampler(
            order,
            store.lengths[order],
            self.batch_size if train else self.eval_batch_size,
            shuffle=train,
            seed=self.seed,
            grouping=self.grouping if train else "none",
            max_tokens=self.max_tokens if train else None,
            rank=rank,
            world_size=world_size,
            parts=self._parts() if train else None,
        )

    def _parts(self) -> list[tuple[np.ndarray, float]] | None:
        """Where each set of a mixture is among the training examples, and how often an epoch sees it."""
        members = self.sets_in("train")
        if self.mixture is None or not members:
            return None
        repeats = self.mixture.repeats_of({name: len(members.get(name, ())) for name in self.sets})
        return [(np.searchsorted(self.split.train, m), repeats[name]) for name, m in members.items()]

    def _open(self, source: Source) -> EncodedStore:
        unique = deduplicated(source)
        examples = filtered(unique, self._filters_of(source))
        encoder = Encoder(self.template, self.tokenizer, self.max_length, self.on_long, self.loss_on)
        return open_or_build(
            Path(self.cache_dir),
            self._key(source),
            examples,
            encoder,
            lambda: {"n_bad_records": source.n_skipped, "n_duplicates": unique.n_dropped, **examples.counts},
        )

    def _fingerprint_of(self, source: Source) -> str:
        return source.fingerprint()

    def _filters_of(self, source: Source) -> list[Filter]:
        return self.filters if source in self.sets.values() else []

    def _key(self, source: Source) -> str:
        return f"{source.name}-{hashlib.sha256(json.dumps(self._facts(source)).encode()).hexdigest()[:16]}"

    def _facts(self, source: Source) -> dict[str, Any]:
        """What the encoded examples of a source depend on."""
        return {
            "version": STORE_VERSION,
            "source": self._fingerprint_of(source),
            "template": [self.template.text, self.template.next_turn and self.template.next_turn.text],
            "tokenizer": self.tokenizer.fingerprint,
            "max_length": self.max_length,
            "on_long": self.on_long,
            "loss_on": self.loss_on,
            "filters": [filter.fingerprint() for filter in self._filters_of(source)],
        }


def _short(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def _without(spec: Any, names: Collection[str]) -> Any:
    """The split without the parts that come from files of their own."""
    if isinstance(spec, str) or not names:
        return spec
    return {name: (0 if name in names else share) for name, share in dict(spec).items()}
