"""Which token may attend to which: one interface, so that the model does not know how a batch is laid out.

A layout receives queries, keys and values as the model computes them, `(…, n_heads, d_head)` over the batch's token
axes, and returns the attended values in the same shape. Those of training are here, the key-value cache of
generation is in `instruct_lit.model.cache`, the tree of benchmarks in `instruct_lit.model.prefix_tree`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from instruct_lit.model import attention_products as products
from instruct_lit.model import attention_varlen as varlen
from instruct_lit.model.attention_products import Group
from instruct_lit.model.attention_varlen import Sequences, VarlenDocuments

GROUP_TOKENS = 192  # packed tokens that ask in one call where no variable-length kernel is at hand
ROW_TOKENS = 128  # tokens of each padded row that ask in one call
STEP_TOKENS = 32  # their numbers are multiples of this: few shapes, so that kernels made for them are found again


class AttentionLayout(Protocol):
    """How the tokens of one forward pass see each other."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        """Return softmax(q·k)·v over what each query may see, in the shape of `q`.

        `k` and `v` may have fewer heads than `q`, each serving a group of neighbours (Ainslie et al. 2023).
        """
        ...


def bias_of(visible: Tensor, like: Tensor) -> Tensor:
    """Zero where `visible` is true and minus infinity elsewhere, in the precision of `like` and on its device."""
    hidden = ~visible.to(like.device)
    return torch.zeros(visible.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, -math.inf)


def grouped(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with as many heads as the queries: `(…, H, D)`, a head repeated for each query of its group."""
    n = q.shape[-2] // k.shape[-2]
    return (k, v) if n == 1 else (k.repeat_interleave(n, -2), v.repeat_interleave(n, -2))


class CausalRows:
    """Every row of a `(B, T)` batch is one sequence; a token sees itself and what stands before it.

    Rows are padded on the right, so no real token sees padding and no mask is needed.
    """

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        k, v = grouped(q, k, v)
        q, k, v = (x.transpose(-3, -2) for x in (q, k, v))  # (B, H, T, D)
        if products.suits_rows(q):
            n = q.shape[-2]
            bias = bias_of(torch.ones(n, n, dtype=torch.bool).tril(), q)
            ends = [(start, min(start + ROW_TOKENS, n)) for start in range(0, n, ROW_TOKENS)]
            groups = [Group(start, end, 0, 0, bias[start:end, :end]) for start, end in ends]
            queries, keys, values = (x.flatten(0, -3) for x in (q, k, v))
            out = products.attend(queries, keys, values, groups, dropout).view(q.shape)
        else:
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return out.transpose(-3, -2)


class PackedDocuments:
    """Documents one after the other on a single token axis `(N,)`, each attending to itself and to a shared prefix.

    The first `prefix_length` tokens are the prefix that every document continues; they are computed once, and their
    keys and values are seen by all documents, so that the result is what each document alone would give
    (arXiv 2506.05433 calls it prefix grouping). The documents follow with the given lengths.

    On CUDA in half precision one variable-length kernel serves all documents; elsewhere the flat tokens ask in groups,
    each under a mask that hides other documents, which costs less than gathering short documents to rows.
    """

    def __init__(self, lengths: Sequence[int], prefix_length: int = 0) -> None:
        assert len(lengths) > 0 and min(lengths) > 0, "a document has at least one token"
        self.lengths = list(lengths)
        self.prefix_length = prefix_length
        self.n_tokens = prefix_length + sum(self.lengths)
        self._groups: list[Group] | None = None
        self._varlen: VarlenDocuments | None = None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        assert q.shape[0] == self.n_tokens, f"{q.shape[0]} tokens for a layout of {self.n_tokens}"
        k, v = grouped(q, k, v)
        if varlen.suits(q, dropout):
            if self._varlen is None:
                self._varlen = VarlenDocuments(Sequences(self.lengths, self.prefix_length, q.device))
            return self._varlen.attend(layer, q, k, v, dropout)
        return self._attend_groups(q, k, v, dropout)

    def _attend_groups(self, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        if self._groups is None:
            self._groups = _cut_into_groups(self.lengths, self.prefix_length, q)
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))  # (H, N, D)
        if products.suits(q, max(group.bias.shape[1] for group in self._groups)):
            return products.attend(q, k, v, self._groups, dropout).transpose(0, 1)
        outputs = []
        for group in self._groups:
            queries, keys, values = (x.unsqueeze(0) for x in (group.queries_of(q), group.keys_of(k), group.keys_of(v)))
            outputs.append(F.scaled_dot_product_attention(queries, keys, values, group.bias, dropout_p=dropout)[0])
        return torch.cat(outputs, 1).transpose(0, 1)


def _cut_into_groups(lengths: list[int], n_prefix: int, like: Tensor) -> list[Group]:
    """Cut the flat tokens into groups of about `GROUP_TOKENS`, whatever documents they cut through.

    Queries and keys begin at multiples of `STEP_TOKENS`: few shapes, so that kernels made for them are found again.
    """
    document = torch.repeat_interleave(torch.tensor([n_prefix, *lengths]))  # (N,): 0 for the prefix
    begin = torch.tensor([0, n_prefix, *lengths]).cumsum(0)[document]  # where each token's document begins
    n_tokens = len(document)
    size = _up(n_tokens / max(1, round(n_tokens / GROUP_TOKENS)))
    place = torch.arange(n_tokens)
    groups = []
    for start in range(0, n_tokens, size):
        end = min(start + size, n_tokens)
        first_key = int(begin[start]) // STEP_TOKENS * STEP_TOKENS
        if first_key < n_prefix:
            first_key = 0
        keys = place[first_key:end] if first_key == 0 else torch.cat((place[:n_prefix], place[first_key:end]))
        own = slice(start, end)
        visible = ((keys >= begin[own, None]) | (keys < n_prefix)) & (keys <= place[own, None])
        groups.append(Group(start, end, first_key, n_prefix if first_key else 0, bias_of(visible, like)))
    return groups


def _up(n: float) -> int:
    return math.ceil(n / STEP_TOKENS) * STEP_TOKENS
