"""Training batches of a data set that does not fit: read shard by shard, shuffled in a buffer, resumed exactly.

The order of an epoch is one sequence, which depends on seed and epoch alone. Every rank and every worker reads all of
it and encodes only its own batches, so the number of workers changes nothing, and the global batches do not depend on
the number of ranks. Reading is cheap compared with encoding and training; a resume reads skipped batches again without
encoding them.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from instruct_lit.core.data.batching import Batch, Collator
from instruct_lit.core.data.encode import EncodedExample, Encoder
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.records import FileSource, ReadingNotes
from instruct_lit.datasets import install
from instruct_lit.datasets.filters import FilterChain
from instruct_lit.datasets.near_duplicates import words
from instruct_lit.datasets.split_groups import prompt_text
from instruct_lit.errors import DataError, InstructLitError

HELD_OUT_EPOCH = 1 << 31  # the order that validation and test are taken from; training never reaches this epoch
SHARD = 32  # bits of an example's index that number it within its shard
Item = TypeVar("Item")


def shuffled(items: Iterable[Item], size: int, random: np.random.Generator) -> Iterator[Item]:
    """The items in an order that is random within a buffer of `size`; each leaves it exactly once."""
    buffer: list[Item] = []
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
            continue
        place = int(random.integers(size))
        buffer[place], item = item, buffer[place]
        yield item
    for place in random.permutation(len(buffer)):
        yield buffer[place]


def prompt_digest(example: Example) -> bytes:
    """A hash that examples share when their prompts have the same words."""
    text = " ".join(words(prompt_text(example)))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


@dataclass(eq=False, repr=False)
class ExampleStream(IterableDataset):
    """The encoded batches of one rank (in a worker process: of that worker), each with the counts of what was read, and
    of what of the batch was cut or dropped.

    An example's index is the number of its shard, shifted by 32 bits, plus its position there.
    """

    source: FileSource
    make_encoder: Callable[[], Encoder]
    _: KW_ONLY
    batch_size: int
    buffer_size: int
    seed: int = 0
    filters: FilterChain | None = None
    held_out: frozenset[bytes] = frozenset()  # `prompt_digest`s of validation and test, whose examples are skipped
    rank: int = 0
    world_size: int = 1
    epoch: int = field(default=0, init=False)
    n_skip: int = field(default=0, init=False)  # batches that the next iteration skips: they were seen before a resume

    def examples(self, epoch: int, counts: dict[str, int]) -> Iterator[tuple[int, Example]]:
        """Index and example in the order of an epoch; `counts` is kept up to date with what was read."""
        random = np.random.default_rng((self.seed, epoch))
        if self.filters is not None:
            self.filters.start()
        yield from shuffled(self._read(random, counts), self.buffer_size, random)

    def _read(self, random: np.random.Generator, counts: dict[str, int]) -> Iterator[tuple[int, Example]]:
        shards = self.source.shards()
        self.source.notes = ReadingNotes()  # of this reading alone
        for number in random.permutation(len(shards)):
            for place, example in enumerate(self.source.read(shards[number])):
                counts["n_read"] = counts.get("n_read", 0) + 1
                reason = "n_bad_records" if example is None else self._rejects(example)
                if reason is None:
                    assert example is not None
                    yield (int(number) << SHARD) + place, example
                else:
                    counts[reason] = counts.get(reason, 0) + 1

    def _rejects(self, example: Example) -> str | None:
        """The name of the count of a skipped example; None for one that is kept."""
        if self.filters is not None and (name := self.filters.rejects(example)) is not None:
            return name
        return "n_left_out_of_train" if self.held_out and prompt_digest(example) in self.held_out else None

    def __iter__(self) -> Iterator[tuple[list[EncodedExample], dict[str, int], dict[str, int]]]:
        install()  # a worker process may have been spawned
        worker = get_worker_info()
        own, n_workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        counts: dict[str, int] = {}
        examples = self.examples(self.epoch, counts)
        size = self.batch_size * self.world_size
        number = 0
        while chunk := list(islice(examples, size)):
            # The loader takes a batch from each worker in turn, after a resume too beginning with the first worker.
            if number >= self.n_skip and (number - self.n_skip) % n_workers == own:
                encoder = self.make_encoder()  # whose counts are those of the batch
                mine = chunk[self.rank :: self.world_size]
                batch = [encoded for numbered in mine for encoded in _encoded(encoder, *numbered)]
                lost = {name: n for name, n in encoder.counts.items() if n and name != "n_encoded"}
                yield batch, dict(counts), lost
            number += 1


def _encoded(encoder: Encoder, number: int, example: Example) -> Iterator[EncodedExample]:
    """The encoding of one example, or nothing when it is too long."""
    try:
        for _, encoded in encoder.encode([example]):
            yield replace(encoded, index=number)
    except DataError as error:
        raise DataError(f"shard {number >> SHARD}, record {number % (1 << SHARD)}: {error}") from error


def _collated(collator: Collator, item: tuple[list[EncodedExample], Any, Any]) -> tuple[Batch, Any, Any]:
    return collator(item[0]), *item[1:]


class StreamLoader(DataLoader):
    """The loader of a stream, one epoch after the other; it can resume in the middle of one.

    Lightning prefetches one batch from a loader without a length, so the batches that were trained on are counted
    separately, by `trained`. `counts` is what had been read for the last batch that was yielded.
    """

    dataset: ExampleStream

    def __init__(self, stream: ExampleStream, collator: Collator, n_workers: int = 0, pin_memory: bool = False) -> None:
        super().__init__(
            stream,
            batch_size=None,
            collate_fn=partial(_collated, collator),
            num_workers=n_workers,
            pin_memory=pin_memory,
        )
        self.counts: dict[str, int] = {}
        self._n_yielded = self._n_trained = 0  # in the current epoch
        self._start = (0, 0)  # epoch, and how many of its batches are skipped

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        epoch, n_skip = self._start  # Lightning may begin an epoch twice, so it is kept
        self.dataset.epoch, self.dataset.n_skip = epoch, n_skip
        self._n_yielded = self._n_trained = n_skip
        lost: Counter[str] = Counter()  # of all workers together, each of which encodes its own batches
        try:
            for batch, counts, of_batch in super().__iter__():
                lost.update(of_batch)
                self.counts = counts | lost
                self._n_yielded += 1
                yield batch
        except InstructLitError as error:  # the message of a worker's error includes its traceback
            raise type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from None
        self._start = (epoch + 1, 0)

    def trained(self) -> None:
        """Count one more batch as trained on."""
        self._n_trained += 1

    # Not named state_dict and load_state_dict: Lightning would call those itself, not knowing what was trained on.
    @property
    def position(self) -> dict[str, int]:
        """Epoch and number of its batch that a resumed run begins with."""
        epoch = self.dataset.epoch
        at_end = self._start[0] > epoch and self._n_trained == self._n_yielded
        return {"epoch": epoch + at_end, "n_batches": 0 if at_end else self._n_trained}

    def resume_at(self, position: dict[str, int]) -> None:
        """Let the next iteration begin at this position."""
        self._start = position["epoch"], position["n_batches"]
