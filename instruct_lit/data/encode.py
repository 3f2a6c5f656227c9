"""Text to token ids: prompt and response are encoded apart, so that the ids of prompts are those of generation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Protocol

import numpy as np

from instruct_lit.data.example import Example
from instruct_lit.data.template import Template
from instruct_lit.errors import DataError

OnLong = Literal["truncate", "drop", "error"]
CHUNK = 4096  # examples encoded at once: enough work for all cores, little memory


class Tokenizer(Protocol):
    """What the data, training and generation need of a tokenizer; `prompt_start` are ids before every prompt."""

    eot_id: int
    n_vocab: int
    prompt_start: tuple[int, ...]

    def encode(self, text: str) -> list[int]: ...
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    @property
    def n_bytes_of(self) -> np.ndarray: ...
    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """Token ids `(T,)` of prompt, response and end-of-text, and which of them belong to the response `(T,)`.

    End-of-text is missing where the response was cut. `index` is the example's place in its data set.
    """

    index: int
    ids: np.ndarray
    is_response: np.ndarray

    @property
    def n_prompt(self) -> int:
        """Number of leading tokens that belong to the prompt."""
        return int(self.is_response.argmax()) if self.is_response.any() else len(self.ids)

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
    A cut response is not followed by end-of-text: the model shall not learn to stop in mid-sentence.
    """

    def __init__(self, template: Template, tokenizer: Tokenizer, max_length: int, on_long: OnLong = "truncate") -> None:
        self.template, self.tokenizer = template, tokenizer
        self.max_length, self.on_long = max_length, on_long
        self.counts = EncodingCounts()

    def prompt_ids(self, example: Example) -> list[int]:
        """Token ids of an example's prompt, the same in training and in generation."""
        return [*self.tokenizer.prompt_start, *self.tokenizer.encode(self.template.prompt(example))]

    def encode(self, examples: Iterable[Example]) -> Iterator[tuple[Example, EncodedExample]]:
        """Yield each example that is kept with its encoding; `counts` tells about the others."""
        iterator = iter(examples)
        n_read = 0
        while chunk := list(islice(iterator, CHUNK)):
            prompts = self.tokenizer.encode_batch([self.template.prompt(example) for example in chunk])
            responses = self.tokenizer.encode_batch([self.template.response(e) for e in chunk])
            for number, (example, prompt, response) in enumerate(zip(chunk, prompts, responses, strict=True)):
                prompt = [*self.tokenizer.prompt_start, *prompt]
                ids = self._fit(prompt, response, n_read + number)
                if ids is None:
                    continue
                is_response = np.zeros(len(ids), dtype=bool)
                is_response[len(prompt) :] = True
                yield example, EncodedExample(self.counts.n_encoded, np.array(ids, dtype=np.int64), is_response)
                self.counts.n_encoded += 1
            n_read += len(chunk)

    def _fit(self, prompt: list[int], response: list[int], number: int) -> list[int] | None:
        ids = [*prompt, *response, self.tokenizer.eot_id]
        if len(ids) <= self.max_length:
            return ids
        if self.on_long == "error":
            raise DataError(
                f"example {number} has {len(ids)} tokens, data.max_length is {self.max_length}; raise it (up to the "
                "model's context), or choose data.on_long=truncate or data.on_long=drop"
            )
        if self.on_long == "drop" or len(prompt) >= self.max_length:
            self.counts.n_dropped_long += 1
            return None
        self.counts.n_truncated += 1
        return ids[: self.max_length]
