"""From logits to the next token: greedy, or sampled with temperature, top-k, top-p and repetition penalty.

Shapes: R rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from zlib import crc32

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
            "stop": (type(self.stop) is not str and all(type(s) is str and s for s in self.stop), "a list of texts"),
        }
        wrong = [f"generation.{k}={getattr(self, k)}: must be {rule}" for k, (ok, rule) in rules.items() if not ok]
        if wrong:
            raise ConfigError("\n  ".join(wrong))

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always chosen."""
        return self.temperature < GREEDY_BELOW

    def of_prompt(self, prompt: Sequence[int]) -> "SamplingSettings":
        """The settings with a seed of this prompt: the responses that are scored together draw different numbers."""
        return replace(self, seed=(self.seed + crc32(repr(tuple(prompt)).encode())) % 2**63)


def choose(
    logits: Tensor, settings: Sequence[SamplingSettings], n_chosen: Sequence[int], seen: Sequence[Sequence[int]]
) -> Tensor:
    """Return the chosen ids `(R,)` for `logits` `(R, V)`, each row by its own settings.

    `n_chosen` are the tokens of each response so far; `seen` are the ids that the repetition penalty applies to.
    """
    if all(s.is_greedy and s.repetition_penalty == 1 for s in settings):
        return logits.max(-1).indices  # the same as argmax, which takes five times as long on a CPU
    logits = logits.to("cpu" if logits.device.type == "mps" else logits.device, torch.float32, copy=True)  # no float64
    for row, setting, ids in zip(logits, settings, seen, strict=True):
        if setting.repetition_penalty != 1 and ids:
            index = torch.tensor(sorted(set(ids)), device=logits.device)
            row[index] = penalised(row[index], setting.repetition_penalty)
    chosen = logits.argmax(-1)
    sampled = [row for row, setting in enumerate(settings) if not setting.is_greedy]
    if sampled:
        limits = limits_of([settings[row] for row in sampled], logits.shape[-1], logits.device)
        draws = torch.stack([draws_of(settings[row].seed, n_chosen[row], 1) for row in sampled])
        chosen[sampled] = drawn(nucleus(logits[sampled], *limits), draws.to(logits.device))
    return chosen


def penalised(logits: Tensor, penalty: Tensor | float) -> Tensor:
    """The logits of tokens that occurred, made less likely by the penalty."""
    return torch.where(logits > 0, logits / penalty, logits * penalty)


def limits_of(settings: Sequence[SamplingSettings], n_vocab: int, device: torch.device) -> tuple[Tensor, ...]:
    """Temperature and, if any row has one, top-k and top-p, `(R, 1)` each, for `nucleus`."""
    rows = [(s.temperature, min(s.top_k or n_vocab, n_vocab), s.top_p or 1.0) for s in settings]
    limits = torch.tensor(rows, device=device)[..., None].unbind(1)
    return limits if any(s.top_k or s.top_p for s in settings) else limits[:1]


def nucleus(logits: Tensor, temperature: Tensor, top_k: Tensor | None = None, top_p: Tensor | None = None) -> Tensor:
    """Return probabilities `(R, V)` after temperature, top-k and top-p (Holtzman et al. 2020), in this order.

    Of equally likely tokens at a cut-off the lower ids are kept; the most likely token is always kept.
    """
    # The greatest logit is subtracted first, so that no quotient overflows; of infinite ones the difference is NaN.
    quotients = (logits - logits.amax(-1, keepdim=True)).div_(temperature).nan_to_num_(0.0, neginf=-torch.inf)
    probabilities = quotients.softmax(-1)
    if top_k is None or top_p is None:
        return probabilities
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    ordered = ordered.masked_fill(torch.arange(logits.shape[-1], device=logits.device) >= top_k, 0.0)
    ordered = ordered / ordered.sum(-1, keepdim=True)
    before = ordered.cumsum(-1) - ordered
    cut = (before >= top_p) & (top_p < 1)
    cut[:, 0] = False  # a tiny top_p is rounded to 0
    ordered = ordered.masked_fill(cut, 0.0)
    return torch.zeros_like(probabilities).scatter_(-1, ids, ordered / ordered.sum(-1, keepdim=True))


@lru_cache(maxsize=512)  # requests without a seed of their own share one
def draws_of(seed: int, start: int, n: int) -> Tensor:
    """Uniform random numbers for `n` tokens of a response from the token `start` on; no other response changes them."""
    return torch.rand(start + n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)[start:]


def drawn(probabilities: Tensor, draws: Tensor) -> Tensor:
    """Return the ids `(R,)` that uniform random numbers `(R, 1)` select from `probabilities` `(R, V)`."""
    cumulative = probabilities.double().cumsum(-1)
    found = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True).squeeze(1)
    return torch.minimum(found, (probabilities > 0).long().cumsum(-1).argmax(-1))  # rounding must not exceed the last
