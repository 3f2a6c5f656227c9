"""The data of one run as a LightningDataModule: source → encoded store → split → batches."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from instruct_lit.core.data.batching import Batch, BatchSampler, Collator, ResumableLoader
from instruct_lit.core.data.encode import EncodedStore, Encoder, open_or_build
from instruct_lit.core.data.settings import NAMES, Batching, ExampleFilter, Lengths, Masking, Source, Split, Splits
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import Tokenizer
from instruct_lit.errors import ConfigError

STORE_VERSION = 8  # part of every store's key; increment it when the meaning of a store's files changes


class InstructionData(LightningDataModule):
    """Train, validation and test batches of one source."""

    stored_parts: tuple[str, ...] = NAMES  # whose examples are known before the run

    def __init__(
        self,
        source: Source,
        template: Template,
        tokenizer: Tokenizer,
        cache_dir: Path,
        lengths: Lengths,
        splits: Splits = Splits(),  # noqa: B008 (the settings are frozen)
        masking: Masking = Masking(),  # noqa: B008
        batching: Batching = Batching(),  # noqa: B008
        filters: ExampleFilter | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.sources: tuple[Source, ...] = (source,)
        self.template, self.tokenizer, self.cache_dir = template, tokenizer, Path(cache_dir)
        self.lengths, self.splits, self.masking, self.batching = lengths, splits, masking, batching
        self.filters, self.seed = filters, seed
        self.collator = self._collator()
        self.split_spec = splits.spec
        if not isinstance(splits.spec, str):  # what comes from separate files is not split off
            self.split_spec = {name: 0 if name in splits.files else share for name, share in splits.spec.items()}
            if abs(sum(splits.spec.values()) - 1) < 1e-9:  # train takes what the others leave
                self.split_spec.pop("train", None)
        self.stores: dict[str, EncodedStore] = {}
        self.split_counts: dict[str, int] = {}
        self._train_loader: ResumableLoader | None = None
        self._resume_from: dict[str, int] | None = None

    def prepare_data(self) -> None:
        """Read, encode and store; Lightning calls it on one process only."""
        for source in (*self.sources, *self.splits.files.values()):
            self._open(source)

    def setup(self, stage: str | None = None) -> None:
        """Open the encoded stores and split them."""
        if self.stores:
            return
        main, self.split = self._open_main()
        self.stores = {"main": main, **{name: self._open(source) for name, source in self.splits.files.items()}}
        self._fit_to(max(int(store.lengths.max()) for store in self.stores.values()))
        if self.splits.regroup is not None:
            movable = self.splits.spec != "book"  # which is in file order
            self.split, moved = self.splits.regroup(self.split, self.stores, movable, self.cache_dir, self.fingerprint)
            self.split_counts |= moved

    def _open_main(self) -> tuple[EncodedStore, Split]:
        """The store of all examples that are split, and the split before groups are kept together."""
        store = self._open(self.sources[0])
        return store, make_split(len(store), self.split_spec, self.seed)

    def _open(self, source: Source) -> EncodedStore:
        """The store of a source, built when it does not exist."""
        lengths = self.lengths
        encoder = Encoder(self.template, self.tokenizer, lengths.max_length, lengths.on_long, self.masking.loss_on)
        filters = self.filters if source in self.sources else None  # separate files are not filtered
        return open_or_build(self.cache_dir, self._key(source), source, encoder, filters)

    def _fit_to(self, longest: int) -> None:
        """Decide the layout for examples of up to `longest` tokens; ConfigError if they are longer than the rows."""
        pad_to = self.lengths.pad_to
        if pad_to is not None and longest - 1 > pad_to:
            remedy = f"raise it, or lower data.max_length to {pad_to + 1}"
            raise ConfigError(f"data.pad_to={pad_to}: the longest example has {longest - 1} inputs; {remedy}")
        self.batching = self.batching.choose(self.batching, longest - 1)
        self.collator = self._collator()

    def _collator(self) -> Collator:
        batching = self.batching
        return Collator(
            self.tokenizer.eot_id, self.tokenizer.n_bytes_of, batching.layout, batching.shared_prefix,
            self.masking.mask_prompt, self.lengths.pad_to, batching.pad_to_multiple_of, self.masking.prompt_weight,
        )  # fmt: skip

    @property
    def counts(self) -> dict[str, int]:
        """The number of examples in each part of the split, and of those that were skipped, dropped or moved."""
        main, moved = self.stores["main"], self.split_counts
        parts = {f"n_{name}": len(self.examples_of(name)[1]) for name in NAMES}
        n_split = sum(len(part) for name, part in vars(self.split).items() if name not in self.stores)
        n_apart = sum(n for name, n in moved.items() if name.startswith(("n_left_out", "n_duplicates")))
        others = {**main.counts, **moved, "n_unused": max(0, len(main) - n_split - n_apart)}
        return parts | {name: n for name, n in others.items() if n and name != "n_encoded"}

    @property
    def notes(self) -> list[str]:
        """What was skipped and what no one reads in the data, in lines for a person."""
        return list(dict.fromkeys(line for store in self.stores.values() for line in store.notes.lines()))

    def loader_names(self, split: str) -> list[str]:
        """The names of the loaders of a split; empty when there is a single one for all of it."""
        return []

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

    def val_dataloader(self) -> DataLoader[Batch] | list[ResumableLoader]:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch] | list[ResumableLoader]:
        return self._loader("test")

    @property
    def n_train_batches(self) -> float:
        """Training batches of an epoch, of all ranks together before `trainer` is set; infinite for a stream."""
        return len(self._sampler("train", self.examples_of("train")[1]))

    # Lightning restores a loader's own state only if no loader was made before, which the schedule's length needs.
    def state_dict(self) -> dict[str, int]:
        """The position in the training data."""
        return self._train_loader.state_dict() if self._train_loader is not None else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next training loader resume at that position."""
        self._resume_from = state_dict or None

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch, which decides the order of the training batches."""
        if self.trainer is not None and self.trainer.train_dataloader is not None:
            self.trainer.train_dataloader.set_epoch(epoch)

    def _loader(self, split: str, indices: np.ndarray | None = None) -> ResumableLoader:
        store, all_indices = self.examples_of(split)
        return ResumableLoader(
            store,  # type: ignore[arg-type]
            batch_sampler=self._sampler(split, all_indices if indices is None else indices),
            collate_fn=self.collator,
            num_workers=self.batching.n_workers,
            persistent_workers=self.batching.n_workers > 0,
            pin_memory=self.trainer is not None and self.trainer.accelerator.name() == "cuda",
            # Its own, so that starting an epoch does not change the global state that a resumed run restores.
            generator=torch.Generator(),
        )

    def _sampler(self, split: str, indices: np.ndarray) -> BatchSampler:
        lengths, batching = self.examples_of(split)[0].lengths, self.batching
        options: dict[str, Any] = {"seed": self.seed}
        if self.trainer is not None:
            options |= {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        if split == "train":
            options |= {"grouping": batching.grouping, "max_tokens": batching.max_tokens}
            return BatchSampler(indices, lengths[indices], batching.batch_size, **options)
        # Sorted by length; the order of an evaluation does not matter, since its result is a sum.
        order = indices[np.argsort(-lengths[indices], kind="stable")]
        size = batching.eval_batch_size or batching.batch_size
        return BatchSampler(order, lengths[order], size, shuffle=False, **options)

    @property
    def fingerprint(self) -> str:
        """Identifies records, template, tokenizer and length settings together."""
        return "-".join(self._key(source) for source in (*self.sources, *self.splits.files.values()))

    def _key(self, source: Source) -> str:
        return f"{source.name}-{hash_of(self.facts_of(source))[:16]}"

    def facts_of(self, source: Source) -> dict[str, Any]:
        """What the encoded examples of a source depend on."""
        return {
            "version": STORE_VERSION,
            "source": source.fingerprint(),
            "template": [self.template.text, self.template.next_turn and self.template.next_turn.text],
            "tokenizer": self.tokenizer.fingerprint,
            "max_length": self.lengths.max_length,
            "on_long": self.lengths.on_long,
            "loss_on": self.masking.loss_on,
            "filters": self.filters.fingerprints() if self.filters is not None and source in self.sources else [],
        }


def hash_of(facts: Any) -> str:
    """A hash of what can be written as JSON."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


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
        order, requested = np.arange(n_examples), {*NAMES}
        sizes = {"train": int(n_examples * 0.85), "test": int(n_examples * 0.1)}
        sizes["val"] = n_examples - sum(sizes.values())
    else:
        for name, share in sorted(spec.items()):
            if name not in NAMES:
                raise ConfigError(f"data.split.{name}: allowed are {', '.join(NAMES)}")
            is_number = isinstance(share, int | float) and not isinstance(share, bool)
            if not is_number or not 0 <= share < math.inf or (share > 1 and share % 1):
                raise ConfigError(f"data.split.{name}={share}: must be a fraction below 1 or a whole count")
        order = np.random.default_rng(seed).permutation(n_examples)
        requested = {"train", *spec} - {name for name, share in spec.items() if share == 0}
        fractions = {name: x for name, x in spec.items() if 0 < x < 1 or (x == 1 and isinstance(x, float))}
        counts = {**dict.fromkeys(NAMES, 0), **spec, **{name: x * n_examples for name, x in fractions.items()}}
        sizes = {name: int(counts[name]) for name in ("test", "val", "train")}  # in the order in which they are drawn
        # Fractions that add up to 1 lose nothing to rounding: train takes the remainder.
        if "train" not in spec or ("train" in fractions and abs(sum(fractions.values()) - 1) < 1e-9):
            sizes["train"] = n_examples - sizes["test"] - sizes["val"]
        if sum(fractions.values()) > 1 + 1e-9 or sum(sizes.values()) > n_examples or sizes["train"] < 0:
            wanted = f"data.split={spec}: {sum(counts.values()):.6g} are more than the {n_examples} examples"
            raise ConfigError(f"{wanted}; lower its parts, also those that are left at their defaults")
    parts, start = {}, 0
    for name, size in sizes.items():
        if size == 0 and name in requested:
            raise ConfigError(f"data.split={spec}: of {n_examples} examples none is left for {name}; give more, or 0")
        parts[name] = np.sort(order[start : start + size])
        start += size
    return Split(**parts)
