"""Tokens in groups of queries that attend in one call, of a few shapes only.

Kernels of matrix libraries are made for every shape, so sizes are rounded up to multiples of `STEP_TOKENS`: a group may
have more queries and keys than it needs, and the surplus is masked or dropped.

Shapes: P problems side by side (heads, or rows times heads), N tokens, D the width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP_TOKENS = 192  # up to which packed documents share a group
PIECE_TOKENS = 256  # of a longer document that form a group
ROW_TOKENS = 128  # tokens of each padded row that form a group
STEP_TOKENS = 32


@dataclass(frozen=True)
class Group:
    """The queries of the tokens `start` to `end`, which attend in one call.

    Their keys are the first `n_prefix` tokens and those from `first_key` on. `bias` `(queries, keys)` is zero where a
    query sees a key and minus infinity elsewhere. It may have more rows and columns than there are tokens: results of
    queries from `end` on are dropped, and no other query sees a key from there on.
    """

    start: int
    end: int
    first_key: int
    n_prefix: int
    bias: Tensor

    @property
    def n_own(self) -> int:
        """Number of contiguous keys from `first_key` on."""
        return self.bias.shape[1] - self.n_prefix

    @property
    def n_reached(self) -> int:
        """The number of tokens that `queries_of` and `keys_of` index."""
        return max(self.start + len(self.bias), self.first_key + self.n_own)

    def queries_of(self, x: Tensor) -> Tensor:
        """The query rows of `x` `(P, N, D)`, surplus ones included."""
        return x[:, self.start : self.start + len(self.bias)]

    def keys_of(self, x: Tensor) -> Tensor:
        """The key rows of `x` `(P, N, D)`."""
        own = x[:, self.first_key : self.first_key + self.n_own]
        return torch.cat((x[:, : self.n_prefix], own), 1) if self.n_prefix else own

    def write_queries(self, out: Tensor, part: Tensor) -> None:
        """Write the rows of `part` that are no surplus to their places in `out`."""
        out[:, self.start : self.end] = part[:, : self.end - self.start]

    def gradient_of(self, grad: Tensor) -> Tensor:
        """The query rows of `grad` `(P, N, D)`, zeros for surplus ones."""
        n = self.end - self.start
        own = grad[:, self.start : self.end]
        return own if n == len(self.bias) else F.pad(own, (0, 0, 0, len(self.bias) - n))

    def add_to_keys(self, total: Tensor, part: Tensor) -> None:
        """Add `part` to the rows that `keys_of` takes."""
        total[:, self.first_key : self.first_key + self.n_own] += part[:, self.n_prefix :]
        if self.n_prefix:
            total[:, : self.n_prefix] += part[:, : self.n_prefix]


def padded_for(x: Tensor, groups: Sequence[Group]) -> Tensor:
    """`(P, N, D)` contiguous, padded with zero rows up to what the groups index."""
    n_more = max(group.n_reached for group in groups) - x.shape[1]
    return F.pad(x, (0, 0, 0, n_more)) if n_more else x.contiguous()


def bias_of(visible: Tensor, like: Tensor) -> Tensor:
    """Zero where `visible` is true and minus infinity elsewhere, with dtype and device of `like`."""
    hidden = ~visible.to(like.device)
    return torch.zeros(visible.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, -math.inf)


def row_groups(n_tokens: int, like: Tensor) -> list[Group]:
    """Groups of consecutive tokens of causal rows of `n_tokens`."""
    bias = bias_of(torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril(), like)
    ends = [(start, min(start + ROW_TOKENS, n_tokens)) for start in range(0, n_tokens, ROW_TOKENS)]
    return [Group(start, end, 0, 0, bias[start:end, :end]) for start, end in ends]


def document_groups(lengths: Sequence[int], n_prefix: int, like: Tensor) -> list[Group]:
    """Groups of packed documents behind a shared prefix: short documents together, long ones in pieces."""
    cuts: list[tuple[int, int, int]] = []  # start and end of a group, and where its first document begins
    begin = 0
    for length in [n_prefix, *lengths]:
        end = begin + length
        if cuts and end - cuts[-1][2] <= GROUP_TOKENS:
            cuts[-1] = cuts[-1][0], end, cuts[-1][2]
        elif length:
            step = _round_up(length / math.ceil(length / PIECE_TOKENS))
            cuts += [(start, min(start + step, end), begin) for start in range(begin, end, step)]
        begin = end
    document = torch.repeat_interleave(torch.tensor([n_prefix, *lengths]))  # (N,): 0 for the prefix
    return [_group(*cut, n_prefix, document, like) for cut in cuts]


def _group(start: int, end: int, first_key: int, n_prefix: int, document: Tensor, like: Tensor) -> Group:
    """The group of the tokens `start` to `end`, which see the prefix and the tokens of their document up to themselves.

    Surplus queries see the prefix or, where there is none, themselves, so that no softmax is over nothing.
    """
    n_prefix = n_prefix if first_key else 0  # the first group has it among its own keys
    n_queries, n_keys = _round_up(end - start), _round_up(n_prefix + end - first_key)
    keys = torch.cat((torch.arange(n_prefix), torch.arange(first_key, first_key + n_keys - n_prefix)))
    queries = torch.arange(start, start + n_queries)
    of = F.pad(document, (0, n_queries + n_keys))
    visible = ((of[keys] == of[queries, None]) | (of[keys] == 0)) & (keys <= queries[:, None])
    return Group(start, end, first_key, n_prefix, bias_of(visible, like))


def _round_up(n: float) -> int:
    return math.ceil(n / STEP_TOKENS) * STEP_TOKENS
