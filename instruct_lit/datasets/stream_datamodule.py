"""The data of a run whose training set is streamed; validation and test are stored as ever."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from instruct_lit.core.data.collate import Batch
from instruct_lit.core.data.datamodule import InstructionData
from instruct_lit.core.data.encode import Encoder, Tokenizer
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.sources import Sharded
from instruct_lit.core.data.split import Split
from instruct_lit.core.data.store import EncodedStore
from instruct_lit.core.data.template import Template
from instruct_lit.datasets.mixture import MixtureStore, Share
from instruct_lit.datasets.stream_reader import HELD_OUT_EPOCH, ExampleStream, StreamLoader, prompt_digest
from instruct_lit.errors import ConfigError


class HeldOut:
    """Examples that were taken from a stream, as a source."""

    n_skipped = 0

    def __init__(self, name: str, examples: list[Example], facts: str) -> None:
        self.name, self.examples, self.facts = name, examples, facts

    def fingerprint(self) -> str:
        return hashlib.sha256(self.facts.encode()).hexdigest()[:16]

    def prepare(self) -> None:
        """Nothing to fetch."""

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)


class First:
    """The first `n` examples of a stream, as a source that fits."""

    def __init__(self, source: Any, n: int) -> None:
        self.source, self.n, self.name = source, n, source.name

    @property
    def n_skipped(self) -> int:
        return self.source.n_skipped

    def fingerprint(self) -> str:
        return f"{self.source.quick_fingerprint()}-{self.n}"

    def prepare(self) -> None:
        self.source.prepare()

    def __iter__(self) -> Iterator[Example]:
        return islice(iter(self.source), self.n)


class StreamedData(InstructionData):
    """Training batches out of a stream (`datasets.stream_reader`), validation and test out of stores.

    Validation and test are files of their own or the first examples, `split` says how many, of an order of the stream
    that training never has. Training leaves out what has the same prompt as one of them (`keep_together`). Exact
    repetitions within a stream stay: to know them, all of it would have to be remembered.
    """

    stored_parts = ("val", "test")

    def __init__(
        self,
        source: Sharded,
        template: Template,
        tokenizer: Tokenizer,
        cache_dir: Path,
        *,
        shuffle_buffer: int,
        **options: Any,
    ) -> None:
        super().__init__(source, template, tokenizer, cache_dir, **options)  # type: ignore[arg-type]
        self.source, self.shuffle_buffer = source, shuffle_buffer
        self._held_out: frozenset[bytes] = frozenset()
        self._stream_loader: StreamLoader | None = None

    def prepare_data(self) -> None:
        """Encode validation and test; Lightning calls it on one process only."""
        self.source.prepare()
        for source in self._evaluation_sources().values():
            source.prepare()
            self._open(source)

    def setup(self, stage: str | None = None) -> None:
        if self.stores:
            return
        self._check_pad_to(self.max_length)  # the longest example of a stream is not known
        sources = self._evaluation_sources()
        self.stores = {name: self._open(source) for name, source in sources.items()}
        self.split = Split(*(np.arange(0) for _ in range(3)))
        # What was taken from the stream is never trained on; files of their own have relatives there only if so wanted.
        apart = [s for s in sources.values() if isinstance(s, HeldOut) or self.keep_together != "nothing"]
        self._held_out = frozenset(prompt_digest(example) for source in apart for example in source)

    def _evaluation_sources(self) -> dict[str, Any]:
        """Files of their own, or what the split takes from the stream."""
        spec = self.split_spec if isinstance(self.split_spec, Mapping) else {}
        wanted = {name: int(spec.get(name, 0)) for name in ("val", "test") if name not in self.own_files}
        apart = self.own_files.values() if self.keep_together != "nothing" else ()
        different = self._different(
            (example for _, example in self._stream().examples(HELD_OUT_EPOCH, {})),
            {prompt_digest(example) for source in apart for example in source},
        )
        taken = list(islice(different, sum(wanted.values())))
        if len(taken) < sum(wanted.values()):
            raise ConfigError(f"data.split={spec}: the stream has only {len(taken)} different examples")
        facts = f"{self.fingerprint} {spec} {self.seed} {[f.fingerprint() for f in self.filters]} {self.keep_together}"
        sources: dict[str, Any] = dict(self.own_files)
        for name, n in wanted.items():
            sources[name] = HeldOut(f"{self.source.name}_{name}", taken[:n], facts)
            taken = taken[n:]
        return sources

    @staticmethod
    def _different(examples: Iterable[Example], seen: set[bytes]) -> Iterator[Example]:
        """Examples of which no two have the same prompt, nor one of `seen`: validation and test have none in common."""
        for example in examples:
            digest = prompt_digest(example)
            if digest not in seen:
                seen.add(digest)
                yield example

    def examples_of(self, split: str) -> tuple[EncodedStore | MixtureStore, np.ndarray]:
        """The store and the indices in it that make up `val` or `test`; of `train` nothing is stored."""
        store = self.stores["val" if split == "train" else split]
        return store, np.arange(0 if split == "train" else len(store))

    @property
    def counts(self) -> dict[str, int]:
        """How many examples validation and test have, and what this process has read of the stream so far."""
        read = self._stream_loader.counts if self._stream_loader is not None else {}
        return {f"n_{name}": len(self.examples_of(name)[1]) for name in ("val", "test")} | read

    def shares(self) -> dict[str, Share]:
        return {}

    def _stream(self) -> ExampleStream:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        return ExampleStream(
            self.source,
            self._encoder,
            batch_size=self.batch_size,
            buffer_size=self.shuffle_buffer,
            seed=self.seed,
            filters=self.filters,
            held_out=self._held_out,
            rank=rank,
            world_size=world_size,
        )

    def _encoder(self) -> Encoder:
        return Encoder(self.template, self.tokenizer, self.max_length, self.on_long, self.loss_on)

    def train_dataloader(self) -> StreamLoader:  # type: ignore[override]
        pin_memory = self.trainer is not None and self.trainer.accelerator.name() == "cuda"
        self._stream_loader = StreamLoader(self._stream(), self.collator, self.n_workers, pin_memory)
        if self._resume_from is not None:
            self._stream_loader.go_on_at(self._resume_from)
            self._resume_from = None
        return self._stream_loader

    def set_epoch(self, epoch: int) -> None:
        """The loader counts its epochs itself: a run that is resumed in the middle of one goes on with it."""

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Lightning's hook for every batch that is used now, not only fetched."""
        if self.trainer is not None and self.trainer.training and self._stream_loader is not None:
            self._stream_loader.trained()
        return batch

    def state_dict(self) -> dict[str, int]:
        """How far the stream has been trained on."""
        return self._stream_loader.position if self._stream_loader is not None else {}

    def _fingerprint_of(self, source: Any) -> str:
        if source is self.source:
            return f"{source.quick_fingerprint()} {self.shuffle_buffer} {self.split_spec}"
        return source.fingerprint()
