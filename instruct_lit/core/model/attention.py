"""Which token may attend to which: one interface, so that the model does not know how a batch is laid out.

A layout receives queries, keys and values as the model computes them, `(…, H, D)` over the batch's token axes, and
returns the attended values in the same shape. The layouts of training are here, those of cached generation in
`instruct_lit.core.model.kv_cache`.

Every layout has a plain implementation by `scaled_dot_product_attention`. `KERNELS` lists faster ones, which are asked
first; it is empty unless something registers them (`instruct_lit.accel.install`).

Shapes: B rows, T tokens of a row, N tokens of a flat batch, H heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class AttentionLayout(Protocol):
    """How the tokens of one forward pass see each other."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        """Return softmax(q·kᵀ/√D)·v over what each query may see, in the shape of `q`.

        `k` and `v` may have fewer heads than `q`, each shared by a group of neighbouring query heads (Ainslie et al.
        2023).
        """
        ...


class AttentionKernel(Protocol):
    """A faster computation of a layout's attention."""

    def __call__(self, layout: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor | None:
        """Return the attended values, or None where layout, device, dtype or size is not supported.

        `q`, `k` and `v` are what the layout's plain implementation would attend with.
        """
        ...


KERNELS: list[AttentionKernel] = []


def try_kernels(layout: AttentionLayout, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor | None:
    """Return the result of the first registered kernel that supports these arguments, None if there is none."""
    for kernel in KERNELS:
        out = kernel(layout, q, k, v, dropout)
        if out is not None:
            return out
    return None


def repeat_kv(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values `(…, H, D)` with as many heads as the queries: each head repeated for its group of queries."""
    n = q.shape[-2] // k.shape[-2]
    return (k, v) if n == 1 else (k.repeat_interleave(n, -2), v.repeat_interleave(n, -2))


class CausalRows:
    """Every row of a `(B, T)` batch is one sequence; a token sees itself and the tokens before it.

    Rows are padded on the right, so no real token sees padding and no mask is needed.
    """

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        k, v = repeat_kv(q, k, v)
        out = try_kernels(self, q, k, v, dropout)
        if out is not None:
            return out
        q, k, v = (x.transpose(-3, -2) for x in (q, k, v))  # (B, H, T, D)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True).transpose(-3, -2)


class PackedDocuments:
    """Documents one after the other on a single token axis `(N,)`, each attending to itself and to a shared prefix.

    The first `prefix_length` tokens are the prefix that every document continues. They are computed once and seen by
    all documents, so the result is what each document alone, with the prefix before it, would give ("prefix grouping",
    arXiv 2506.05433). Documents of the given `lengths` follow. `kernel_state` holds what kernels compute once for all
    layers.
    """

    def __init__(self, lengths: Sequence[int], prefix_length: int = 0) -> None:
        assert len(lengths) > 0 and min(lengths) > 0, "a document has at least one token"
        self.lengths = list(lengths)
        self.prefix_length = prefix_length
        self.n_tokens = prefix_length + sum(self.lengths)
        self.kernel_state: dict[str, Any] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        assert q.shape[0] == self.n_tokens, f"{q.shape[0]} tokens for a layout of {self.n_tokens}"
        k, v = repeat_kv(q, k, v)
        out = try_kernels(self, q, k, v, dropout)
        if out is not None:
            return out
        prefix_q, prefix_k, prefix_v = (x[: self.prefix_length] for x in (q, k, v))
        outputs = [_causal(prefix_q, prefix_k, prefix_v, dropout)] if self.prefix_length else []
        documents = (x[self.prefix_length :].split(self.lengths) for x in (q, k, v))
        for queries, keys, values in zip(*documents, strict=True):
            outputs.append(_causal(queries, torch.cat((prefix_k, keys)), torch.cat((prefix_v, values)), dropout))
        return torch.cat(outputs)


def _causal(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Causal attention of one document, all `(T, H, D)`; the last query is the last key, also of more keys."""
    visible = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(len(k) - len(q))
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, visible, dropout_p=dropout).transpose(0, 1)
