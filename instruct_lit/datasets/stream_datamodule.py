"""The data module of a streamed training set; validation and test are stored."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from instruct_lit.core.data.batching import Batch
from instruct_lit.core.data.datamodule import InstructionData
from instruct_lit.core.data.encode import EncodedStore, Encoder
from instruct_lit.core.data.example import Example, listed
from instruct_lit.core.data.records import FileSource, ReadingNotes
from instruct_lit.core.data.settings import Source, Split
from instruct_lit.datasets.stream_hub_source import sampled_digest
from instruct_lit.datasets.stream_reader import HELD_OUT_EPOCH, ExampleStream, StreamLoader, prompt_digest
from instruct_lit.errors import ConfigError

FIRST_RECORDS = 100  # that are read before the run where none are held out


class HeldOut:
    """Examples that were taken from a stream, as a source."""

    notes = ReadingNotes()

    def __init__(self, name: str, examples: list[Example], facts: str) -> None:
        self.name, self.examples, self.facts = name, examples, facts

    def fingerprint(self) -> str:
        content = b"".join(example.digest for example in self.examples)
        return hashlib.sha256(self.facts.encode() + content).hexdigest()[:16]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)


class Head:
    """The first `n` examples of a stream, as a source that can be stored."""

    def __init__(self, source: FileSource, n: int) -> None:
        self.source, self.n, self.name = source, n, source.name

    @property
    def notes(self) -> ReadingNotes:
        return self.source.notes

    def fingerprint(self) -> str:
        return f"{quick_fingerprint(self.source)}-{self.n}"

    def __iter__(self) -> Iterator[Example]:
        return islice(iter(self.source), self.n)


def quick_fingerprint(source: FileSource) -> str:
    """The fingerprint of a source too large to be read for it: of files, names, sizes and samples of the contents."""
    if not source.paths:
        return source.fingerprint()
    facts = [f"{source.columns} {source.on_bad_record} {source.format}{source.reading}"]
    facts += [f"{path.name} {sampled_digest(path)}" for path in source.shards()]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


class StreamedData(InstructionData):
    """Training batches from a stream (`datasets.stream_reader`), validation and test from stores.

    Validation and test are separate files, or the first examples of an order of the stream that training never has;
    `splits.spec` gives their numbers. With `splits.groups`, whose only choice here is `same_prompt`, training skips
    what has the same prompt as one of them. Exact duplicates within a stream are kept: to find them, all of it would
    have to be remembered.
    """

    stored_parts = ("val", "test")

    def __init__(self, source: FileSource, *args: Any, shuffle_buffer: int, **kwargs: Any) -> None:
        super().__init__(source, *args, **kwargs)
        self.source, self.shuffle_buffer = source, shuffle_buffer
        self._held_out: frozenset[bytes] = frozenset()
        self._stream_loader: StreamLoader | None = None

    def prepare_data(self) -> None:
        """Encode validation and test; Lightning calls it on one process only."""
        if self.stores:  # Lightning asks again, when what is held out is no longer in the stream
            return
        self.source.shards()  # opens the source, so that a wrong name fails before the run
        for source in self._evaluation_sources().values():
            self._open(source)

    def setup(self, stage: str | None = None) -> None:
        if self.stores:
            return
        self._fit_to(self.lengths.max_length)  # the longest example of a stream is not known
        sources = self._evaluation_sources()
        self.stores = {name: self._open(source) for name, source in sources.items()}
        if not self.source.notes.n_records:  # otherwise what is wrong with all records would be seen by a step
            list(islice(self.source.read(self.source.shards()[0]), FIRST_RECORDS))
        self.split = Split(*(np.arange(0) for _ in range(3)))
        # What was taken from the stream is never trained on; relatives of separate files are skipped only with groups.
        excluded = [s for s in sources.values() if isinstance(s, HeldOut) or self.splits.regroup is not None]
        self._held_out = frozenset(prompt_digest(example) for source in excluded for example in source)

    def _evaluation_sources(self) -> dict[str, Source]:
        """Separate files, or what the split takes from the stream."""
        spec = self.splits.spec if isinstance(self.splits.spec, Mapping) else {}
        files, grouped = self.splits.files, self.splits.regroup is not None
        sizes = {name: int(spec.get(name, 0)) for name in ("val", "test") if name not in files}
        different = self._different(
            (example for _, example in self._stream().examples(HELD_OUT_EPOCH, {})),
            {prompt_digest(example) for source in (files.values() if grouped else ()) for example in source},
        )
        taken = list(islice(different, sum(sizes.values())))
        if len(taken) < sum(sizes.values()):
            found = f"the stream has only {len(taken)} different examples"
            raise ConfigError(f"data.split={spec}: {found}; lower the counts")
        filters = self.filters.fingerprints() if self.filters is not None else []
        facts = f"{self.fingerprint} {spec} {self.seed} {filters} {grouped}"
        rest = iter(taken)
        held = {name: HeldOut(f"{self.source.name}_{name}", [*islice(rest, n)], facts) for name, n in sizes.items()}
        return {**files, **held}

    @staticmethod
    def _different(examples: Iterable[Example], seen: set[bytes]) -> Iterator[Example]:
        """Examples that share their prompt with no other one and none in `seen`."""
        for example in examples:
            digest = prompt_digest(example)
            if digest not in seen:
                seen.add(digest)
                yield example

    def examples_of(self, split: str) -> tuple[EncodedStore, np.ndarray]:
        """The store and the indices in it that make up `val` or `test`; nothing of `train` is stored."""
        store = self.stores["val" if split == "train" else split]
        return store, np.arange(0 if split == "train" else len(store))

    @property
    def counts(self) -> dict[str, int]:
        """The number of validation and test examples, and what this process has read of the stream so far."""
        read = self._stream_loader.counts if self._stream_loader is not None else {}
        return {f"n_{name}": len(self.examples_of(name)[1]) for name in ("val", "test")} | read

    @property
    def notes(self) -> list[str]:
        """The notes of what this process has read of the stream, and of separate files."""
        n, unseen = self.source.notes.n_records, self.source.unseen
        found = f"warning: none of the {n:,} records read so far has the field {listed(sorted(unseen))} of data.columns"
        return [*([found] if unseen and n else []), *self.source.notes.lines(), *super().notes]

    def _stream(self) -> ExampleStream:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        return ExampleStream(
            self.source,
            self._encoder,
            batch_size=self.batching.batch_size,
            buffer_size=self.shuffle_buffer,
            seed=self.seed,
            filters=self.filters,  # type: ignore[arg-type]
            held_out=self._held_out,
            rank=rank,
            world_size=world_size,
        )

    def _encoder(self) -> Encoder:
        lengths = self.lengths
        return Encoder(self.template, self.tokenizer, lengths.max_length, lengths.on_long, self.masking.loss_on)

    @property
    def n_train_batches(self) -> float:
        return math.inf

    def train_dataloader(self) -> StreamLoader:  # type: ignore[override]
        pin_memory = self.trainer is not None and self.trainer.accelerator.name() == "cuda"
        self._stream_loader = StreamLoader(self._stream(), self.collator, self.batching.n_workers, pin_memory)
        if self._resume_from is not None:
            self._stream_loader.resume_at(self._resume_from)
            self._resume_from = None
        return self._stream_loader

    def set_epoch(self, epoch: int) -> None:
        """Nothing: the loader counts its epochs itself, since a resumed run continues in the middle of one."""

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Count a batch that is trained on, which Lightning calls this hook for; prefetching alone does not."""
        if self.trainer is not None and self.trainer.training and self._stream_loader is not None:
            self._stream_loader.trained()
        return batch

    def state_dict(self) -> dict[str, int]:
        """The position in the stream up to which it has been trained on."""
        return self._stream_loader.position if self._stream_loader is not None else {}

    def facts_of(self, source: Any) -> dict[str, Any]:
        if source is not self.source:
            return super().facts_of(source)
        facts = super().facts_of(Head(self.source, 0))
        filters = self.filters.fingerprints() if self.filters is not None else []
        identity = f"{quick_fingerprint(self.source)} {self.shuffle_buffer} {self.splits.spec}"
        return {**facts, "source": identity, "filters": filters}
