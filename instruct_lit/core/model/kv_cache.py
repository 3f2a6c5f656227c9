"""The key-value cache of generation, and the two attention layouts that fill and read it.

Shapes: L layers, R rows (sequences), T tokens of a row, H heads of keys and values, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from instruct_lit.core.model.attention import PackedDocuments, try_kernels
from instruct_lit.core.model.causal import Shape


class KeyValueCache:
    """Keys and values of `n_rows` sequences of at most `n_tokens` tokens, allocated once.

    The token at position p of a row is stored at index p: rows are not padded on the left, so absolute positions hold.
    `keys` and `values` are `(L, R, H, T, D)`.
    """

    def __init__(self, config: Shape, n_rows: int, n_tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.n_layers, n_rows, config.n_heads, n_tokens, config.d_head)
        # Zeros, since masked values must still be finite: 0 · NaN is NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.n_rows, self.n_tokens = n_rows, n_tokens

    def move(self, source: int, target: int, n_tokens: int) -> None:
        """Copy the first `n_tokens` of one row over another."""
        for tensor in (self.keys, self.values):
            tensor[:, target, :, :n_tokens] = tensor[:, source, :, :n_tokens]


class Prefill:
    """Packed prompts behind their common prefix; their keys and values are stored in consecutive rows of the cache."""

    def __init__(self, cache: KeyValueCache, first_row: int, lengths: Sequence[int], prefix_length: int) -> None:
        self.cache, self.own_rows = cache, slice(first_row, first_row + len(lengths))
        self.documents = PackedDocuments(lengths, prefix_length)
        n = torch.tensor(lengths)
        document = torch.repeat_interleave(n)  # (N,): the document of each token behind the prefix
        positions = prefix_length + torch.arange(len(document)) - (n.cumsum(0) - n)[document]
        self.rows, self.positions = (first_row + document).to(cache.keys.device), positions.to(cache.keys.device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        n_prefix = self.documents.prefix_length
        for cached, new in ((self.cache.keys[layer], k), (self.cache.values[layer], v)):
            new = new.to(cached.dtype)
            cached[self.own_rows, :, :n_prefix] = new[:n_prefix].transpose(0, 1)
            cached[self.rows, :, self.positions] = new[n_prefix:]
        return self.documents.attend(layer, q, k, v, dropout)


class Decode:
    """One new token for each of the first rows of the cache, row r at position `lengths[r]`.

    `kernel_state` holds what kernels compute once for all layers.
    """

    def __init__(self, cache: KeyValueCache, lengths: Sequence[int]) -> None:
        self.cache, device = cache, cache.keys.device
        self.n_rows, self.longest = len(lengths), max(lengths) + 1
        self.lengths = torch.tensor(lengths, device=device)
        self.rows = torch.arange(self.n_rows, device=device)
        visible = torch.arange(self.longest, device=device) <= self.lengths[:, None]
        self.mask = None if min(lengths) == max(lengths) else visible[:, None, None, :]  # (R, 1, 1, T)
        self.kernel_state: dict[str, Any] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        """Store keys and values of the new tokens, then attend; kernels get the cache's rows `(R, H, T, D)`."""
        keys, values = self.cache.keys[layer, : self.n_rows], self.cache.values[layer, : self.n_rows]
        keys[self.rows, :, self.lengths] = k[:, 0].to(keys.dtype)
        values[self.rows, :, self.lengths] = v[:, 0].to(values.dtype)
        out = try_kernels(self, q, keys, values, dropout)
        if out is not None:
            return out
        filled = slice(None, self.longest)
        return F.scaled_dot_product_attention(
            q.transpose(1, 2),
            keys[:, :, filled].to(q.dtype),
            values[:, :, filled].to(q.dtype),
            self.mask,
            enable_gqa=q.shape[-2] != k.shape[-2],
        ).transpose(1, 2)
