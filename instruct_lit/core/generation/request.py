"""A request for a response: its prompt, its tokens so far, what ends it, and its log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.likelihood import CHUNK

FinishReason = Literal["stop", "length", "cancelled"]
# From the ids of the response so far to the ids that may come next (at least one); None allows every token.
AllowedNext = Callable[[Sequence[int]], Sequence[int] | None]


class Decoder(Protocol):
    """The part of a tokenizer that the engine uses."""

    eot_id: int

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log-probability of a token given all before it, under the model's own distribution (temperature 1).

    `top` are the most likely tokens at its position, best first. The first token of a text has no probability.
    """

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Request:
    """A prompt and its response: `ids` grows by one token a step and never contains end-of-text.

    Args:
        n_logprobs: number of most likely alternatives to record beside every token's log-probability; None: neither.
        of_prompt: whether to record log-probabilities of the prompt's tokens too.
        allowed_next: constrains the decoding.
    """

    number: int
    prompt_ids: list[int]
    settings: SamplingSettings
    n_logprobs: int | None = None
    of_prompt: bool = False
    allowed_next: AllowedNext | None = None
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        """Tokens of prompt and response so far."""
        return len(self.prompt_ids) + len(self.ids)

    @property
    def stable_text(self) -> str:
        """The text that no later token can change: without an incomplete character or the beginning of a stop text."""
        if self.finish_reason is not None:
            return self.text
        end = len(self.text.rstrip("\ufffd"))
        for stop in self.settings.stop:
            for n in range(min(len(stop) - 1, end), 0, -1):
                if self.text.startswith(stop[:n], end - n):
                    end -= n
                    break
        return self.text[:end]

    def append(self, token: int, tokenizer: Decoder, context_length: int) -> FinishReason | None:
        """Append the next token; return why the response is finished, None if it is not."""
        if self.settings.max_new_tokens == 0:
            return "length"
        if token == tokenizer.eot_id:
            return "stop"
        self.ids.append(token)
        text = tokenizer.decode(self.ids)
        stops = [start for stop in self.settings.stop if (start := text.find(stop)) >= 0]
        self.text = text[: min(stops)] if stops else text
        if stops:
            return "stop"
        if len(self.ids) >= self.settings.max_new_tokens or self.n_tokens >= context_length:
            return "length"
        return None

    def score(self, token: int, logits: Tensor) -> None:
        """Record the log-probability of a token of the response, chosen from `logits` `(V,)`."""
        if self.n_logprobs is not None and len(self.logprobs) < len(self.ids):
            self.logprobs += logprobs_of(logits[None], [token], self.n_logprobs)

    def score_prompt(self, hidden: Tensor, head_weight: Tensor) -> None:
        """Record the log-probabilities of the prompt's tokens from the hidden states `(T, C)` of all of them."""
        self.prompt_logprobs = [TokenLogprob(self.prompt_ids[0], None)]
        for start in range(0, len(self.prompt_ids) - 1, CHUNK):
            targets = self.prompt_ids[start + 1 : start + 1 + CHUNK]
            logits = torch.nn.functional.linear(hidden[start : start + len(targets)], head_weight)
            self.prompt_logprobs += logprobs_of(logits, targets, self.n_logprobs or 0)


def constrained(logits: Tensor, requests: Sequence[Request]) -> Tensor:
    """The logits `(R, V)`, minus infinity at tokens that `allowed_next` of their request excludes."""
    for row, request in enumerate(requests):
        allowed = request.allowed_next(request.ids) if request.allowed_next is not None else None
        if allowed is not None:
            ids, logits = list(allowed), logits.clone()
            values = logits[row, ids]
            logits[row] = float("-inf")
            logits[row, ids] = values
    return logits


def logprobs_of(logits: Tensor, ids: Sequence[int], n_top: int) -> list[TokenLogprob]:
    """Log-probabilities of the tokens `ids` `(M,)` under `logits` `(M, V)`, and of the `n_top` most likely ones."""
    log_probabilities = logits.float().log_softmax(-1)
    chosen = log_probabilities.gather(1, torch.tensor(ids, device=logits.device)[:, None])[:, 0].tolist()
    top = log_probabilities.topk(n_top, dim=-1)
    rows = zip(ids, chosen, top.indices.tolist(), top.values.tolist(), strict=True)
    return [TokenLogprob(i, value, tuple(zip(t, v, strict=True))) for i, value, t, v in rows]
