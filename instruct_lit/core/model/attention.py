"""Which token may attend to which: one interface, so that the model does not know how a batch is laid out.

A layout receives queries, keys and values as the model computes them, `(…, n_heads, d_head)` over the batch's token
axes, and returns the attended values in the same shape. Those of training are here, the key-value cache of
generation is in `instruct_lit.core.model.kv_cache`, the tree of benchmarks in `instruct_lit.suites.prefix_tree`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from instruct_lit.accel import attention_products as products
from instruct_lit.accel import attention_varlen as varlen
from instruct_lit.accel.attention_products import Group
from instruct_lit.accel.attention_varlen import Sequences, VarlenDocuments

GROUP_TOKENS = 192  # up to which packed documents ask in one call where no variable-length kernel is at hand
PIECE_TOKENS = 256  # of a longer document that ask in one call
ROW_TOKENS = 128  # tokens of each padded row that do
STEP_TOKENS = 32  # to multiples of which queries and keys are rounded up: kernels are made for every shape


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
        q, k, v = (products.laid_out(x, self._groups) for x in (q, k, v))
        for group in self._groups:
            queries, keys, values = (x.unsqueeze(0) for x in (group.queries_of(q), group.keys_of(k), group.keys_of(v)))
            out = F.scaled_dot_product_attention(queries, keys, values, group.bias, dropout_p=dropout)[0]
            outputs.append(out[:, : group.end - group.start])
        return torch.cat(outputs, 1).transpose(0, 1)


def _cut_into_groups(lengths: list[int], n_prefix: int, like: Tensor) -> list[Group]:
    """Cut the flat tokens into groups: short documents together, long ones in pieces."""
    cuts: list[tuple[int, int, int]] = []  # start and end of a group, and where its first document begins
    begin = 0
    for length in [n_prefix, *lengths]:
        end = begin + length
        if cuts and end - cuts[-1][2] <= GROUP_TOKENS:
            cuts[-1] = cuts[-1][0], end, cuts[-1][2]
        elif length:
            step = _up(length / math.ceil(length / PIECE_TOKENS))
            cuts += [(start, min(start + step, end), begin) for start in range(begin, end, step)]
        begin = end
    document = torch.repeat_interleave(torch.tensor([n_prefix, *lengths]))  # (N,): 0 for the prefix
    return [_group(*cut, n_prefix, document, like) for cut in cuts]


def _group(start: int, end: int, first_key: int, n_prefix: int, document: Tensor, like: Tensor) -> Group:
    """The group of the tokens `start` to `end`, which see the prefix and the tokens of their document up to themselves.

    Those that ask with them see the prefix or, where there is none, themselves: their weights are numbers, too.
    """
    n_prefix = n_prefix if first_key else 0  # it stands among the keys of the first group
    n_queries, n_keys = _up(end - start), _up(n_prefix + end - first_key)
    keys = torch.cat((torch.arange(n_prefix), torch.arange(first_key, first_key + n_keys - n_prefix)))
    queries = torch.arange(start, start + n_queries)
    of = F.pad(document, (0, n_queries + n_keys))
    visible = ((of[keys] == of[queries, None]) | (of[keys] == 0)) & (keys <= queries[:, None])
    return Group(start, end, first_key, n_prefix, bias_of(visible, like))


def _up(n: float) -> int:
    return math.ceil(n / STEP_TOKENS) * STEP_TOKENS
