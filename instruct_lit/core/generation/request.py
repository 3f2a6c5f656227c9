"""A request for a response: its prompt, its tokens so far, and what ends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from instruct_lit.core.data.tokenizer import Tokenizer
from instruct_lit.core.generation.sampling import SamplingSettings

FinishReason = Literal["stop", "length", "cancelled"]


class Hook:
    """Observes or constrains the decoding of one request; subclasses override what they need."""

    reads_prompt = False  # whether `on_prompt` is called

    def on_prompt(self, ids: Sequence[int], hidden: Tensor, head_weight: Tensor) -> None:
        """Called with the prompt's ids and the hidden states `(T, C)` of all of them."""

    def limit(self, ids: Sequence[int], logits: Tensor) -> Tensor:
        """The logits `(V,)` to choose from after the response so far, `ids`; minus infinity excludes a token."""
        return logits

    def on_token(self, token: int, logits: Tensor) -> None:
        """Called with every chosen token, also end-of-text, and the model's own logits `(V,)`."""


@dataclass(eq=False)
class Request:
    """A prompt and its response: `ids` grows by one token a step and never contains end-of-text.

    `has_eot` is set where the model has ended the response with end-of-text.
    """

    number: int
    prompt_ids: list[int]
    settings: SamplingSettings
    hook: Hook | None = None
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    has_eot: bool = False

    @property
    def n_tokens(self) -> int:
        """Tokens of prompt and response so far."""
        return len(self.prompt_ids) + len(self.ids)

    @property
    def n_generated(self) -> int:
        """Tokens that the model has generated, with end-of-text."""
        return len(self.ids) + self.has_eot

    @property
    def stable_text(self) -> str:
        """The text that no later token can change: without an incomplete character or the beginning of a stop text."""
        if self.finish_reason is not None:
            return self.text
        end = len(self.text.rstrip("\ufffd"))
        for stop in self.settings.stop:
            overlaps = (n for n in range(min(len(stop) - 1, end), 0, -1) if self.text.startswith(stop[:n], end - n))
            end -= next(overlaps, 0)
        return self.text[:end]

    def append(self, token: int, tokenizer: Tokenizer, context_length: int) -> FinishReason | None:
        """Append the next token; return why the response is finished, None if it is not."""
        if self.settings.max_new_tokens == 0:
            return "length"
        if token == tokenizer.eot_id:
            self.has_eot = True
            return "stop"
        self.ids.append(token)
        text = tokenizer.decode(self.ids)
        stops = [start for stop in self.settings.stop if (start := text.find(stop)) >= 0]
        self.text = text[: min(stops)] if stops else text
        if stops:
            return "stop"
        is_full = len(self.ids) >= self.settings.max_new_tokens or self.n_tokens >= context_length
        return "length" if is_full else None
