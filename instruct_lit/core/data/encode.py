"""Text to token ids, and encoded examples on disk.

Prompt and response are encoded separately, so that the prompt ids of training are those of generation. Tokens, masks
and records are appended to files while the source is read, so that memory does not grow with the number of records.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

import numpy as np

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.records import ReadingNotes, without_duplicates
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import Tokenizer, Turns, closed, encode_turns
from instruct_lit.errors import DataError

if TYPE_CHECKING:
    from instruct_lit.core.data.settings import ExampleFilter, Source

OnLong = Literal["truncate", "truncate_left", "drop", "error"]
LossOn = Literal["all", "last"]
CHUNK = 4096  # examples encoded at once: enough work for all cores, little memory
LAST_TURNS: list[Callable[[Encoder, Example, Turns], tuple[Example, Turns]]] = []  # that fit; `datasets` adds it
_FILES = {"tokens.bin": np.int32, "is_response.bin": bool, "weights.bin": np.float32, "records.jsonl": np.uint8}
_COMPLETE = "counts.json"  # of a store, written last: a folder without it is incomplete


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """Token ids `(T,)` of prompt, response and end-of-text, and a mask `(T,)` of the responses that are trained on.

    A conversation has them turn after turn. End-of-text is missing where the last response was truncated. `index` is
    the example's position in its data set, `weights` `(T,)` those of the tokens in the loss, 1 by default.
    """

    index: int
    ids: np.ndarray
    is_response: np.ndarray
    weights: np.ndarray | None = None

    @property
    def n_prompt(self) -> int:
        """Number of leading tokens that are the prompt of the last response."""
        return self.spans[-1][0] if self.spans else len(self.ids)

    @property
    def prompt_ids(self) -> list[int]:
        """The prompt ids of generation."""
        return self.ids[: self.n_prompt].tolist()

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The responses that are trained on, as (first token, token after the last one)."""
        changes = np.flatnonzero(np.diff(self.is_response, prepend=False, append=False))
        return [(int(start), int(end)) for start, end in changes.reshape(-1, 2)]


class Encoder:
    """Renders and encodes examples, at most `max_length` tokens each, end-of-text included.

    A longer one is dropped, refused with a DataError, or loses whole turns from its end or its beginning (`on_long`). A
    single answer is cut, and has no end-of-text then: the model must not learn to stop in mid-sentence. What has no
    response to learn is dropped. All responses are trained on, or the last (`loss_on`), each with end-of-text behind.
    """

    def __init__(
        self, template: Template, tokenizer: Tokenizer, max_length: int, on_long: OnLong = "truncate",
        loss_on: LossOn = "all",
    ) -> None:  # fmt: skip
        self.template, self.tokenizer = template, tokenizer
        self.max_length, self.on_long, self.loss_on = max_length, on_long, loss_on
        self.prompt_ids = partial(template.prompt_ids, tokenizer=tokenizer)
        self.counts = {"n_encoded": 0, "n_truncated": 0, "n_dropped_long": 0, "n_without_weight": 0}

    def encode(self, examples: Iterable[Example]) -> Iterator[tuple[Example, EncodedExample]]:
        """Yield each kept example with its encoding; `counts` is kept up to date."""
        iterator, n_read = iter(examples), 0
        while chunk := list(islice(iterator, CHUNK)):
            texts = []  # number in the source, example, its turns
            for number, example in enumerate(chunk, start=n_read):
                renderings = self.template.renderings(example)
                # With the last answer alone, so is the last of the texts that a conversation is trained on in.
                learnt = renderings if self.loss_on == "all" else renderings[-1:]
                texts += [(number, *rendering) for rendering in learnt]
            n_read += len(chunk)
            encoded_texts = encode_turns(self.tokenizer, [turns for _, _, turns in texts])
            for (number, example, _), turns in zip(texts, encoded_texts, strict=True):
                if self.on_long == "truncate_left":
                    example, turns = LAST_TURNS[0](self, example, turns)
                encoded, n_turns = self._lay_out(turns, number, example)
                if encoded is not None:
                    yield example if n_turns == len(turns) else example.first_turns(n_turns), encoded

    def _lay_out(self, turns: Turns, number: int, example: Example) -> tuple[EncodedExample | None, int]:
        """The ids of all turns, or None if the example is dropped, and the number of turns that are kept."""
        ids, spans = list(self.tokenizer.prompt_start), []
        for prompt, response in turns:
            start = len(ids) + len(prompt)
            ids += [*prompt, *closed(response, self.tokenizer.eot_id)]
            spans.append((start, len(ids)))
        is_long = len(ids) > self.max_length
        if is_long:
            spans = self._fitting(spans, number, may_be_cut=not example.messages)  # no call and no thought is cut
        first = 0 if self.loss_on == "all" else len(spans) - 1  # turn that is trained on
        # A template may render the last turn alone.
        turn_weights = example.weights[-len(turns) :] or (1.0,) * len(turns)
        if not spans or not any(turn_weights[first : len(spans)]):  # nothing of it would be learnt
            self.counts["n_dropped_long" if is_long else "n_without_weight"] += 1
            return None, 0
        self.counts["n_truncated"] += is_long
        tokens = np.array(ids[: min(spans[-1][1], self.max_length)], dtype=np.int64)
        is_response = np.zeros(len(tokens), dtype=bool)
        weights = np.ones(len(tokens), dtype=np.float32)
        for (start, end), weight in list(zip(spans, turn_weights, strict=False))[first:]:
            is_response[start:end] = weight > 0
            weights[start:end] = weight
        self.counts["n_encoded"] += 1
        return EncodedExample(self.counts["n_encoded"] - 1, tokens, is_response, weights), len(spans)

    def _fitting(self, spans: list[tuple[int, int]], number: int, may_be_cut: bool) -> list[tuple[int, int]]:
        """The responses that are kept of a long example: whole ones, or the first, which is cut; none to drop it."""
        if self.on_long == "error":
            found = f"example {number} has {spans[-1][1]} tokens, data.max_length is {self.max_length}"
            raise DataError(f"{found}; raise it (up to the model's context), or use data.on_long=truncate or drop")
        if self.on_long == "drop":
            return []
        whole = [(start, end) for start, end in spans if end <= self.max_length]
        return whole or [(start, end) for start, end in spans[:1] if start < self.max_length and may_be_cut]


class EncodedStore:
    """Random access to the encoded examples of one folder and to their records.

    Raises: OSError, ValueError, TypeError or LookupError when a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        about = json.loads((folder / _COMPLETE).read_text())
        self.counts: dict[str, int] = about["counts"]
        self.notes = ReadingNotes(**about["notes"])
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        self._record_offsets = np.load(folder / "record_offsets.npy", mmap_mode="r")
        arrays = [np.memmap(folder / name, dtype=dtype, mode="r") for name, dtype in _FILES.items()]
        self._tokens, self._is_response, self._weights, self._records = arrays
        self.lengths: np.ndarray = np.diff(self._offsets)  # tokens of each example (n,)
        n_tokens, n_bytes = self._offsets[-1], self._record_offsets[-1]
        if [len(array) for array in arrays] != [n_tokens, n_tokens, n_tokens, n_bytes]:
            raise ValueError("a file has another length than the offsets")

    def __reduce__(self) -> tuple[type[EncodedStore], tuple[Path]]:
        return EncodedStore, (self.folder,)  # a spawned worker maps the files itself instead of getting a copy of them

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> EncodedExample:
        start, end = self._offsets[index], self._offsets[index + 1]
        ids = np.asarray(self._tokens[start:end], dtype=np.int64)
        weights = np.array(self._weights[start:end])
        return EncodedExample(int(index), ids, np.array(self._is_response[start:end]), weights)

    def example(self, index: int) -> Example:
        """The record of an encoded example."""
        start, end = self._record_offsets[index], self._record_offsets[index + 1]
        return Example.from_record(json.loads(self._records[start:end].tobytes()))

    def to_answer(self, index: int) -> tuple[int, Example, list[int]]:
        """Index, example and prompt ids for an answer to the last turn whose response is trained on."""
        example = self.example(index)
        learnt = [n for n, weight in enumerate(example.weights, start=1) if weight > 0]
        return index, example.first_turns(learnt[-1]) if learnt else example, self[index].prompt_ids

    @property
    def n_response(self) -> np.ndarray:
        """Number of response tokens of each example `(n,)`."""
        return np.add.reduceat(self._is_response, self._offsets[:-1], dtype=np.int64)


def open_or_build(
    cache_dir: Path, key: str, source: Source, encoder: Encoder, filters: ExampleFilter | None = None
) -> EncodedStore:
    """Open the store with that key, or encode what `filters` keep of a source into it; a damaged one is built again.

    Raises: DataError when no example is left or the cache cannot be written.
    """
    folder = cache_dir / "encoded" / key
    with suppress(OSError, ValueError, TypeError, LookupError, EOFError):  # missing, incomplete or damaged
        return EncodedStore(folder)
    shutil.rmtree(folder, ignore_errors=True)
    n_duplicates: dict[str, int] = {}
    examples = without_duplicates(source, n_duplicates)
    temporary = folder.with_name(f"{key}.{uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        n_examples = _write(temporary, encoder.encode(filters(examples) if filters is not None else examples))
        filtered = filters.counts if filters is not None else {}
        counts = {"n_bad_records": source.notes.n_bad.total(), **n_duplicates, **filtered, **encoder.counts}
        if n_examples == 0:
            why = next(iter(source.notes.n_bad), "see data.max_length, data.on_long, data.filters")  # the first reason
            raise DataError(f"no example is left to train on: {why}; {counts}")
        (temporary / _COMPLETE).write_text(json.dumps({"counts": counts, "notes": vars(source.notes)}))
        with suppress(OSError):  # another process was first
            os.replace(temporary, folder)
        return EncodedStore(folder)
    except OSError as error:
        reason = f"cannot be written ({error.strerror}); choose another folder"
        raise DataError(f"paths.cache={cache_dir}: {reason}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(folder: Path, examples: Iterable[tuple[Example, EncodedExample]]) -> int:
    """Write records and encodings as they come; return how many there were."""
    offsets, record_offsets = [0], [0]
    with ExitStack() as stack:
        files = [stack.enter_context((folder / name).open("wb")) for name in _FILES]
        for example, encoded in examples:
            line = json.dumps(example.as_record(), default=str).encode() + b"\n"
            arrays = (encoded.ids, encoded.is_response, encoded.weights, np.frombuffer(line, np.uint8))
            for file, array, dtype in zip(files, arrays, _FILES.values(), strict=True):
                file.write(np.asarray(array, dtype).tobytes())
            offsets.append(offsets[-1] + len(encoded.ids))
            record_offsets.append(record_offsets[-1] + len(line))
    np.save(folder / "offsets.npy", np.array(offsets, dtype=np.int64))
    np.save(folder / "record_offsets.npy", np.array(record_offsets, dtype=np.int64))
    return len(offsets) - 1
