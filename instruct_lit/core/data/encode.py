"""Text to token ids: prompt and response are encoded apart, so that the ids of prompts are those of generation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Protocol

import numpy as np

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.errors import DataError

OnLong = Literal["truncate", "drop", "error"]
LossOn = Literal["all", "last"]
Piece = tuple[list[int], list[int]]  # ids before a response, and of the response
CHUNK = 4096  # examples encoded at once: enough work for all cores, little memory


class Tokenizer(Protocol):
    """What the data, training and generation need of a tokenizer; `prompt_start` are ids before every prompt."""

    eot_id: int
    n_vocab: int
    prompt_start: tuple[int, ...]

    def encode(self, text: str) -> list[int]: ...
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def token_bytes(self, token_id: int) -> bytes: ...
    @property
    def n_bytes_of(self) -> np.ndarray: ...
    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """Token ids `(T,)` of prompt, response and end-of-text, and which of them belong to a learnt response `(T,)`.

    A conversation has all of them turn after turn. End-of-text is missing where the last response was cut. `index` is
    the example's place in its data set.
    """

    index: int
    ids: np.ndarray
    is_response: np.ndarray

    @property
    def n_prompt(self) -> int:
        """Number of leading tokens that are the prompt of the last response."""
        spans = self.spans
        return spans[-1][0] if spans else len(self.ids)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Where the learnt responses are, as (first token, token behind the last one)."""
        changes = np.flatnonzero(np.diff(self.is_response, prepend=False, append=False))
        return [(int(start), int(end)) for start, end in changes.reshape(-1, 2)]

    @property
    def prompt_ids(self) -> list[int]:
        """The ids that generation starts from."""
        return self.ids[: self.n_prompt].tolist()


@dataclass
class EncodingCounts:
    """What became of the examples while encoding."""

    n_encoded: int = 0
    n_truncated: int = 0
    n_dropped_long: int = 0


class Encoder:
    """Renders and encodes examples, at most `max_length` tokens each, end-of-text included.

    A longer example is cut (`truncate`), left out (`drop`) or refused with a DataError (`error`). One whose prompt
    leaves no room for a single response token is left out even when cutting, since the response header must survive.
    A cut response is not followed by end-of-text: the model shall not learn to stop in mid-sentence. A conversation
    that is cut loses the turns whose response has no room, in the example that is yielded too.

    Every response of a conversation is closed by end-of-text. All of them are learnt, or only the last (`loss_on`).
    """

    def __init__(
        self,
        template: Template,
        tokenizer: Tokenizer,
        max_length: int,
        on_long: OnLong = "truncate",
        loss_on: LossOn = "all",
    ) -> None:
        self.template, self.tokenizer = template, tokenizer
        self.max_length, self.on_long, self.loss_on = max_length, on_long, loss_on
        self.counts = EncodingCounts()

    def prompt_ids(self, example: Example) -> list[int]:
        """Token ids of an example's prompt, the same in training and in generation; earlier turns are part of it."""
        *earlier, (prompt, _) = self.template.turns(example)
        ids = list(self.tokenizer.prompt_start)
        for before, response in earlier:
            ids += [*self.tokenizer.encode(before), *self.tokenizer.encode(response), self.tokenizer.eot_id]
        return ids + self.tokenizer.encode(prompt)

    def encode(self, examples: Iterable[Example]) -> Iterator[tuple[Example, EncodedExample]]:
        """Yield each example that is kept with its encoding; `counts` tells about the others."""
        iterator = iter(examples)
        n_read = 0
        while chunk := list(islice(iterator, CHUNK)):
            turns = [self.template.turns(example) for example in chunk]
            prompts = iter(self.tokenizer.encode_batch([prompt for its in turns for prompt, _ in its]))
            responses = iter(self.tokenizer.encode_batch([response for its in turns for _, response in its]))
            for number, (example, its) in enumerate(zip(chunk, turns, strict=True)):
                encoded = [(next(prompts), next(responses)) for _ in its]
                encoded[0] = [*self.tokenizer.prompt_start, *encoded[0][0]], encoded[0][1]
                pieces = self._fit(encoded, n_read + number)
                if pieces is None:
                    continue
                kept = example if len(pieces) == len(its) else example.first_turns(len(pieces))
                yield kept, self._lay_out(pieces)
                self.counts.n_encoded += 1
            n_read += len(chunk)

    def _fit(self, pieces: list[Piece], number: int) -> list[Piece] | None:
        """The turns whose response has room, the last one perhaps not whole; None for an example that is left out."""
        n_tokens = sum(len(prompt) + len(response) + 1 for prompt, response in pieces)
        if n_tokens <= self.max_length:
            return pieces
        if self.on_long == "error":
            raise DataError(
                f"example {number} has {n_tokens} tokens, data.max_length is {self.max_length}; raise it (up to the "
                "model's context), or choose data.on_long=truncate or data.on_long=drop"
            )
        n_kept = start = 0
        for prompt, response in pieces:
            start += len(prompt)
            n_kept += start < self.max_length
            start += len(response) + 1
        if self.on_long == "drop" or n_kept == 0:
            self.counts.n_dropped_long += 1
            return None
        self.counts.n_truncated += 1
        return pieces[:n_kept]

    def _lay_out(self, pieces: list[Piece]) -> EncodedExample:
        ids: list[int] = []
        spans = []
        for prompt, response in pieces:
            ids += prompt
            start = len(ids)
            ids += response
            ids.append(self.tokenizer.eot_id)
            spans.append((start, len(ids)))
        ids = ids[: self.max_length]
        is_response = np.zeros(len(ids), dtype=bool)
        for start, end in spans if self.loss_on == "all" else spans[-1:]:
            is_response[start:end] = True
        return EncodedExample(self.counts.n_encoded, np.array(ids, dtype=np.int64), is_response)


def learnt_texts(encoded: EncodedExample, tokenizer: Tokenizer) -> list[str]:
    """The learnt responses decoded back from the mask, without their end-of-text."""
    ids = encoded.ids.tolist()
    ends = [end - (ids[end - 1] == tokenizer.eot_id) for _, end in encoded.spans]
    return [tokenizer.decode(ids[start:end]) for (start, _), end in zip(encoded.spans, ends, strict=True)]
