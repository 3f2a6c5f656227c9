"""A request for a response: its prompt, its tokens so far, and what ends it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Literal

from torch import Tensor

from instruct_lit.core.data.tokenizer import Tokenizer
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.causal import CausalLM

FinishReason = Literal["stop", "length", "cancelled"]


class Hook:
    """Observes or constrains the decoding of one request; subclasses override what they need."""

    reads_prompt = False  # whether `on_prompt` is called

    def on_prompt(self, ids: Sequence[int], hidden: Tensor, model: CausalLM) -> None:
        """Called with the prompt's ids and the hidden states `(T, C)` of all of them."""

    def limit(self, ids: Sequence[int], logits: Tensor) -> Tensor:
        """The logits `(V,)` to choose from after the response so far, `ids`; minus infinity excludes a token."""
        return logits

    def on_token(self, token: int, logits: Tensor) -> None:
        """Called with every chosen token, also end-of-text, and the model's own logits `(V,)`."""


@dataclass(eq=False)
class Request:
    """A prompt and its response: `ids` grows with every step and never contains end-of-text.

    `has_eot` is set where the model has ended the response with end-of-text; `number` is the prompt's place in a list.
    """

    prompt_ids: list[int]
    settings: SamplingSettings
    hook: Hook | None = None
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    has_eot: bool = False
    number: int = 0

    @property
    def n_tokens(self) -> int:
        """Tokens of prompt and response so far."""
        return len(self.prompt_ids) + len(self.ids)

    def extend(self, tokens: Sequence[int], tokenizer: Tokenizer, context_length: int) -> FinishReason | None:
        """Append tokens up to the one that finishes the response; return why it is finished, None if it is not."""
        if self.settings.max_new_tokens == 0:
            return "length"
        n_free = min(self.settings.max_new_tokens - len(self.ids), context_length - self.n_tokens)
        new = list(takewhile(lambda token: token != tokenizer.eot_id, tokens[:n_free]))
        text = tokenizer.decode(self.ids + new)
        stops = [start for stop in self.settings.stop if (start := text.find(stop)) >= 0]
        if stops and len(new) > 1:  # the first token that completes a stop text is the last
            reasons = (self.extend([token], tokenizer, context_length) for token in new)
            return next(reason for reason in reasons if reason is not None)
        self.ids += new
        self.text = text[: min(stops)] if stops else text
        self.has_eot = not stops and len(new) < min(n_free, len(tokens))
        if stops or self.has_eot:
            return "stop"
        return "length" if len(new) == n_free else None
