"""Which token may attend to which: one interface, so that the model does not know how a batch is laid out.

A layout receives queries, keys and values as the model computes them, `(…, n_heads, d_head)` over the batch's token
axes, and returns the attended values in the same shape. The three of training are here; the key-value cache of
generation is in `instruct_lit.model.cache`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH_TOKENS = 16  # blocks are multiples of this wide: few shapes, so that kernels made for them are found again
SHORT_TOKENS = 512  # keys up to which a CPU attends in half precision without the fused kernel


class AttentionLayout(Protocol):
    """How the tokens of one forward pass see each other."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        """Return softmax(q·k)·v over what each query may see, in the shape of `q`.

        `k` and `v` may have fewer heads than `q`, each serving a group of neighbours (Ainslie et al. 2023).
        """
        ...


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(q·kᵀ/√D)·v for `q` `(…, Tq, D)`, `k` and `v` `(…, Tk, D)`; a query sees where `mask` `(Tq, Tk)` is true.

    Without a mask it is causal. On a CPU in half precision the fused kernel is slower than two matrix products as long
    as the scores stay small, its backward pass up to seven times (`python -m benchmarks.attention`).
    """
    if not _plainly(q, k):
        return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, is_causal=mask is None)
    if mask is None:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    with torch.autocast(q.device.type, enabled=False):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        weights = scores.masked_fill_(~mask, -math.inf).softmax(-1)
        return F.dropout(weights, dropout) @ v


def grouped(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with as many heads as the queries: `(…, H, D)`, a head repeated for each query of its group."""
    n = q.shape[-2] // k.shape[-2]
    return (k, v) if n == 1 else (k.repeat_interleave(n, -2), v.repeat_interleave(n, -2))


def _plainly(q: Tensor, k: Tensor) -> bool:
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[-2] > 1 and k.shape[-2] <= SHORT_TOKENS


class CausalRows:
    """Every row of a `(B, T)` batch is one sequence; a token sees itself and what stands before it.

    Rows are padded on the right, so no real token sees padding and no mask is needed.
    """

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        k, v = grouped(q, k, v)
        q, k, v = (x.transpose(-3, -2) for x in (q, k, v))  # (B, H, T, D)
        return attention(q, k, v, None, dropout).transpose(-3, -2)


@dataclass(frozen=True)
class _Block:
    """Documents of similar length, gathered to rows of `n_tokens` for one attention call.

    `rows` `(n_documents · n_tokens,)` points into the flat tokens (at token 0 where a row is padding); `real` picks the
    positions of the block that are no padding; `mask` `(n_tokens, n_prefix + n_tokens)` is true where a token sees.
    """

    rows: Tensor
    real: Tensor
    mask: Tensor
    n_documents: int
    n_tokens: int


class PackedDocuments:
    """Documents one after the other on a single token axis `(N,)`, each attending to itself and to a shared prefix.

    The first `prefix_length` tokens are the prefix that every document continues; they are computed once, and their
    keys and values are seen by all documents, so that the result is what each document alone would give
    (arXiv 2506.05433 calls it prefix grouping). The documents follow with the given lengths.

    On CUDA in half precision one variable-length kernel serves all documents; elsewhere documents of similar length
    are gathered to small padded blocks for attention alone.
    """

    def __init__(self, lengths: Sequence[int], prefix_length: int = 0) -> None:
        assert len(lengths) > 0 and min(lengths) > 0, "a document has at least one token"
        self.lengths = list(lengths)
        self.prefix_length = prefix_length
        self.n_tokens = prefix_length + sum(self.lengths)
        self._blocks: tuple[list[_Block], Tensor] | None = None
        self._varlen: tuple[Tensor, Tensor, Tensor] | None = None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        assert q.shape[0] == self.n_tokens, f"{q.shape[0]} tokens for a layout of {self.n_tokens}"
        k, v = grouped(q, k, v)
        if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and dropout == 0.0:
            return self._attend_varlen(q, k, v)
        return self._attend_blocks(q, k, v, dropout)

    def _attend_blocks(self, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        if self._blocks is None:
            self._blocks = _cut_into_blocks(self.lengths, self.prefix_length, q.device)
        blocks, inverse = self._blocks
        n_prefix, n_heads, d_head = self.prefix_length, q.shape[1], q.shape[2]
        outputs = []
        if n_prefix:
            qp, kp, vp = (x[:n_prefix].transpose(0, 1).unsqueeze(0) for x in (q, k, v))  # (1, H, P, D)
            out = attention(qp, kp, vp, None, dropout)
            outputs.append(out[0].transpose(0, 1))
        qkv = torch.stack((q, k, v), dim=1).flatten(1)  # (N, 3·H·D): one gather for the three
        for block in blocks:
            shape = (block.n_documents, block.n_tokens, 3, n_heads, d_head)
            qb, kb, vb = _Gather.apply(qkv, block.rows, block.real).view(shape).permute(2, 0, 3, 1, 4)  # (B, H, T, D)
            if n_prefix:
                kb = torch.cat((kp.expand(block.n_documents, -1, -1, -1), kb), dim=2)
                vb = torch.cat((vp.expand(block.n_documents, -1, -1, -1), vb), dim=2)
            out = attention(qb, kb, vb, block.mask, dropout)
            outputs.append(out.transpose(1, 2).reshape(-1, n_heads, d_head))
        return _Scatter.apply(torch.cat(outputs), inverse)

    def _attend_varlen(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        if self._varlen is None:
            self._varlen = _varlen_indices(self.lengths, self.prefix_length, q.device)
        cu_q, cu_k, key_rows = self._varlen
        n_prefix, longest = self.prefix_length, max(self.lengths)
        if n_prefix:  # the prefix is a sequence of its own; its keys stand before those of every document
            k, v = k.index_select(0, key_rows), v.index_select(0, key_rows)
        max_q, max_k = max(longest, n_prefix), longest + n_prefix
        # A right window of 0 is causal; with fewer queries than keys the kernel aligns the last ones.
        out = varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, window_size=(-1, 0))
        assert isinstance(out, Tensor)
        return out


class _Gather(torch.autograd.Function):
    """`x[rows]`, whose backward scatters the real positions back without the atomics of a general gather."""

    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor, real: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(rows, real)
        ctx.n_rows = x.shape[0]
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def, override]
        rows, real = ctx.saved_tensors
        out = grad.new_zeros(ctx.n_rows, grad.shape[1])
        # Real positions are distinct, so copying is adding; nothing uses a padded position, so its gradient is zero.
        return out.index_copy_(0, rows.index_select(0, real), grad.index_select(0, real)), None, None


class _Scatter(torch.autograd.Function):
    """`x[inverse]`, the flat tokens out of the concatenated blocks; backward leaves zeros at padded positions."""

    @staticmethod
    def forward(ctx, x: Tensor, inverse: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(inverse)
        ctx.n_rows = x.shape[0]
        return x.index_select(0, inverse)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def, override]
        (inverse,) = ctx.saved_tensors
        return grad.new_zeros(ctx.n_rows, *grad.shape[1:]).index_copy_(0, inverse, grad), None


def _cut_into_blocks(lengths: list[int], n_prefix: int, device: torch.device) -> tuple[list[_Block], Tensor]:
    """Group documents so that padding adds at most half to a block; return the blocks and each token's place."""
    starts, position = [], n_prefix
    for length in lengths:
        starts.append(position)
        position += length
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    groups: list[list[int]] = []
    n_real = 0
    for i in order:
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= 1.5 * (n_real + lengths[i]):
            groups[-1].append(i)
            n_real += lengths[i]
        else:
            groups.append([i])
            n_real = lengths[i]
    blocks, offset = [], n_prefix
    inverse = torch.empty(position, dtype=torch.long)
    inverse[:n_prefix] = torch.arange(n_prefix)
    for group in groups:
        width = -(-lengths[group[0]] // WIDTH_TOKENS) * WIDTH_TOKENS
        columns = torch.arange(width)
        n_tokens = torch.tensor([lengths[i] for i in group]).unsqueeze(1)
        start = torch.tensor([starts[i] for i in group]).unsqueeze(1)
        real = columns < n_tokens
        rows = torch.where(real, start + columns, 0).flatten()
        places = real.flatten().nonzero().squeeze(1)
        inverse[rows[places]] = places + offset
        mask = torch.ones(width, n_prefix + width, dtype=torch.bool).tril(diagonal=n_prefix)
        blocks.append(_Block(rows.to(device), places.to(device), mask.to(device), len(group), width))
        offset += len(group) * width
    return blocks, inverse.to(device)


def _varlen_indices(lengths: list[int], n_prefix: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Cumulative lengths of queries and keys, and the key rows: the prefix, then prefix and document for each one."""
    n_q = ([n_prefix] if n_prefix else []) + lengths
    n_k = ([n_prefix] if n_prefix else []) + [n_prefix + length for length in lengths]
    prefix, pieces, start = torch.arange(n_prefix), [torch.arange(n_prefix)], n_prefix
    for length in lengths:
        pieces += [prefix, torch.arange(start, start + length)]
        start += length
    cumulative = [torch.tensor([0, *n]).cumsum(0, dtype=torch.int32).to(device) for n in (n_q, n_k)]
    return cumulative[0], cumulative[1], torch.cat(pieces).to(device)
