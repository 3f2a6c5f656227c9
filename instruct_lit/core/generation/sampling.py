"""From logits to the next token: greedy, or sampled with temperature, top-k, top-p and repetition penalty.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instruct_lit.errors import ConfigError

GREEDY_BELOW = 1e-5  # a lower temperature is greedy, as in vLLM: dividing by it would overflow


@dataclass(frozen=True)
class SamplingSettings:
    """How a response is generated; the default is greedy decoding. ConfigError names settings out of their range."""

    max_new_tokens: int = 256
    temperature: float = 0.0  # 0, or below GREEDY_BELOW: greedy
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0  # divides the logits of tokens that occurred (Keskar et al. 2019)
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 0, "at least 0"),
            "temperature": (0 <= self.temperature < float("inf"), "0 or a finite positive number"),
            "top_k": (self.top_k is None or self.top_k >= 1, "null or at least 1"),
            "top_p": (self.top_p is None or 0 < self.top_p <= 1, "null or above 0 and at most 1"),
            "repetition_penalty": (1e-9 <= self.repetition_penalty <= 1e9, "between 1e-9 and 1e9"),
            "seed": (0 <= self.seed < 2**63, "between 0 and 2**63 - 1"),
            "stop": (all(isinstance(s, str) and s for s in self.stop), "non-empty strings"),
        }
        wrong = [f"generation.{k}={getattr(self, k)}: must be {rule}" for k, (ok, rule) in rules.items() if not ok]
        if wrong:
            raise ConfigError("\n  ".join(wrong))

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always chosen."""
        return self.temperature < GREEDY_BELOW


class Sampler:
    """Chooses the next token of every row, each with its own settings.

    A row draws from its own random generator, so its text does not depend on what else is in the batch.
    """

    def __init__(self) -> None:
        self._generators: dict[int, torch.Generator] = {}

    def choose(
        self, logits: Tensor, settings: Sequence[SamplingSettings], keys: Sequence[int], seen: Sequence[Sequence[int]]
    ) -> Tensor:
        """Return the chosen ids `(R,)` for `logits` `(R, V)`.

        `keys` identify the rows' requests; `seen` are the ids that the repetition penalty applies to.
        """
        if all(s.is_greedy and s.repetition_penalty == 1 for s in settings):
            return logits.max(-1).indices  # the same as argmax, which takes five times as long on a CPU
        logits = logits.float().clone()
        for row, setting, ids in zip(logits, settings, seen, strict=True):
            if setting.repetition_penalty != 1 and ids:
                index, penalty = torch.tensor(sorted(set(ids)), device=logits.device), setting.repetition_penalty
                row[index] = torch.where(row[index] > 0, row[index] / penalty, row[index] * penalty)
        chosen = logits.argmax(-1)
        sampled = [row for row, setting in enumerate(settings) if not setting.is_greedy]
        if sampled:
            probabilities = nucleus(logits[sampled], [settings[row] for row in sampled])
            cumulative = probabilities.double().cumsum(-1)
            draws = cumulative.new_tensor([[self._draw(keys[row], settings[row].seed)] for row in sampled])
            drawn = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True).squeeze(1)
            last = (probabilities > 0).long().cumsum(-1).argmax(-1)  # rounding must not exceed the last possible token
            chosen[sampled] = torch.minimum(drawn, last)
        return chosen

    def forget(self, key: int) -> None:
        """Drop the random generator of a finished request."""
        self._generators.pop(key, None)

    def _draw(self, key: int, seed: int) -> float:
        if key not in self._generators:
            self._generators[key] = torch.Generator().manual_seed(seed)
        return float(torch.rand((), generator=self._generators[key], dtype=torch.float64))


def nucleus(logits: Tensor, settings: Sequence[SamplingSettings]) -> Tensor:
    """Return probabilities `(R, V)` after temperature, top-k and top-p (Holtzman et al. 2020), in this order.

    Of equally likely tokens at a cut-off the lower ids are kept; the most likely token is always kept.
    """
    temperature = torch.tensor([s.temperature for s in settings], device=logits.device)[:, None]
    probabilities = (logits / temperature).softmax(-1)
    if probabilities[:, 0].isnan().any():  # of a row with an infinite quotient: its greatest logits share everything
        greatest = (logits == logits.amax(-1, keepdim=True)).float()
        probabilities = torch.where(probabilities.isnan(), greatest / greatest.sum(-1, keepdim=True), probabilities)
    if all(s.top_k is None and s.top_p is None for s in settings):
        return probabilities
    n_vocab = logits.shape[-1]
    top_k = torch.tensor([min(s.top_k or n_vocab, n_vocab) for s in settings], device=logits.device)[:, None]
    top_p = torch.tensor([s.top_p or 1.0 for s in settings], device=logits.device)[:, None]
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    ordered = torch.where(torch.arange(n_vocab, device=logits.device) < top_k, ordered, 0.0)
    ordered = ordered / ordered.sum(-1, keepdim=True)
    before = ordered.cumsum(-1) - ordered
    kept = (before < top_p) | (top_p >= 1)
    kept[:, 0] = True  # a tiny top_p is rounded to 0
    ordered = torch.where(kept, ordered, 0.0)
    ordered = ordered / ordered.sum(-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter_(-1, ids, ordered)
