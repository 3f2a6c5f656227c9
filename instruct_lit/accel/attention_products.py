"""Attention as products of matrices, with its gradients written out: on a CPU the fastest way to learn short sequences.

There the backward pass of torch's fused kernel takes two to five times its forward pass, in bf16 most of all
(`python -m benchmarks.attention`). Written out, queries, keys and values are laid out once for both passes, and what
several groups of queries give to the same keys is added in place. The weights of few keys are kept for the backward
pass, those of many are computed again there, so that memory grows with the tokens and not with their square.

Shapes: P problems side by side (heads, or rows times heads), N tokens, D the width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LONGEST = 2048  # keys up to which products are the faster
LONGEST_ROW = 512  # tokens of padded rows up to which they are, in bf16 alone
N_KEPT = 256  # keys up to which weights are kept


@dataclass(frozen=True)
class Group:
    """The queries of the tokens `start` to `end`, which ask in one call.

    Their keys are the first `n_prefix` tokens and those from `first_key` on. `bias` `(queries, keys)` is zero where a
    token sees and minus infinity elsewhere. It may have more rows and columns than there are tokens, so that there are
    few shapes: answers to queries from `end` on are dropped, and no other sees a key from there on.
    """

    start: int
    end: int
    first_key: int
    n_prefix: int
    bias: Tensor

    @property
    def n_own(self) -> int:
        """Keys that stand together from `first_key` on."""
        return self.bias.shape[1] - self.n_prefix

    @property
    def n_reached(self) -> int:
        """The number of tokens that `queries_of` and `keys_of` look at."""
        return max(self.start + len(self.bias), self.first_key + self.n_own)

    def queries_of(self, x: Tensor) -> Tensor:
        """Of `(P, N, D)` the rows of the tokens that ask, and of those that ask with them."""
        return x[:, self.start : self.start + len(self.bias)]

    def keys_of(self, x: Tensor) -> Tensor:
        """Of `(P, N, D)` the rows of the tokens that are seen."""
        own = x[:, self.first_key : self.first_key + self.n_own]
        return torch.cat((x[:, : self.n_prefix], own), 1) if self.n_prefix else own

    def answers(self, out: Tensor, part: Tensor) -> None:
        """Write the rows of `part` that belong to the group to their places."""
        out[:, self.start : self.end] = part[:, : self.end - self.start]

    def gradient_of(self, grad: Tensor) -> Tensor:
        """Of `(P, N, D)` the rows of the group, and zeros for those that only ask with them."""
        n = self.end - self.start
        own = grad[:, self.start : self.end]
        return own if n == len(self.bias) else F.pad(own, (0, 0, 0, len(self.bias) - n))

    def add_to_keys(self, total: Tensor, part: Tensor) -> None:
        """Add `part` to the rows that `keys_of` takes."""
        total[:, self.first_key : self.first_key + self.n_own] += part[:, self.n_prefix :]
        if self.n_prefix:
            total[:, : self.n_prefix] += part[:, : self.n_prefix]


def laid_out(x: Tensor, groups: Sequence[Group]) -> Tensor:
    """`(P, N, D)` in order, with rows of zeros up to what the groups look at."""
    n_more = max(group.n_reached for group in groups) - x.shape[1]
    return F.pad(x, (0, 0, 0, n_more)) if n_more else x.contiguous()


def suits(q: Tensor, n_keys: int) -> bool:
    """Whether products are the faster way for the flat queries `q`, which see at most `n_keys` keys."""
    on_cpu = q.device.type == "cpu" and q.dtype in (torch.float32, torch.bfloat16)
    return on_cpu and torch.is_grad_enabled() and n_keys <= LONGEST


def suits_rows(q: Tensor) -> bool:
    """Whether they are for causal rows `(…, T, D)`: their many heads together leave the cache sooner."""
    return q.dtype == torch.bfloat16 and q.shape[-2] <= LONGEST_ROW and suits(q, q.shape[-2])


def attend(q: Tensor, k: Tensor, v: Tensor, groups: Sequence[Group], dropout: float) -> Tensor:
    """softmax(q·kᵀ/√D + bias)·v of each group in turn; together they ask with all tokens. All `(P, N, D)`."""
    with torch.autocast(q.device.type, enabled=False):
        return _Attend.apply(q, k, v, groups, dropout)


class _Attend(torch.autograd.Function):
    """Keeps of each group its queries, keys and values, the weights of few keys, and the factors of dropout."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, groups: Sequence[Group], dropout: float
    ) -> Tensor:
        out, kept = torch.empty_like(q, memory_format=torch.contiguous_format), []
        q, k, v = (laid_out(x, groups) for x in (q, k, v))
        for group in groups:
            queries, keys, values = group.queries_of(q), group.keys_of(k), group.keys_of(v)
            weights = _weights(queries, keys, group.bias)
            factor = F.dropout(torch.ones_like(weights), dropout) if dropout else None
            group.answers(out, torch.bmm(weights if factor is None else weights * factor, values))
            kept += [queries, keys, values, weights if keys.shape[1] <= N_KEPT else None, factor]
        ctx.save_for_backward(*kept)
        ctx.groups = groups
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        n_heads, n_tokens, width = grad.shape
        total = grad.new_zeros(3, n_heads, max(group.n_reached for group in ctx.groups), width)
        grad = grad.contiguous()
        kept = ctx.saved_tensors
        for n, group in enumerate(ctx.groups):
            queries, keys, values, weights, factor = kept[5 * n : 5 * n + 5]
            if weights is None:
                weights = _weights(queries, keys, group.bias)
            of_out = group.gradient_of(grad)
            of_weights = torch.bmm(of_out, values.transpose(1, 2))
            dropped = weights
            if factor is not None:
                of_weights, dropped = of_weights * factor, weights * factor
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            group.answers(total[0], _scaled(of_scores, keys))
            group.add_to_keys(total[1], _scaled(of_scores.transpose(1, 2), queries))
            group.add_to_keys(total[2], torch.bmm(dropped.transpose(1, 2), of_out))
        return *total[:, :, :n_tokens], None, None


def _weights(queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    return torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=queries.shape[-1] ** -0.5).softmax(-1)


def _scaled(of_scores: Tensor, x: Tensor) -> Tensor:
    """Their product over √D, as the scores are scaled."""
    return torch.baddbmm(x.new_zeros(()), of_scores, x, beta=0, alpha=x.shape[-1] ** -0.5)
