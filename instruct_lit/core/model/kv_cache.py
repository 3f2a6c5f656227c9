"""The key-value cache of generation, and the two attention layouts that fill and read it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from instruct_lit.core.model.attention import PackedDocuments
from instruct_lit.core.model.causal import Shape
from instruct_lit.core.model.device import multiplies_in_bf16, multiplies_in_tiles

WASTE = 2.0  # places of the cache for each that is filled, up to which products with all of them are the faster


class KeyValueCache:
    """Keys and values of `n_rows` sequences of at most `n_tokens` tokens, allocated once.

    A row's token at position p lies at place p: rows are not padded on the left, so absolute positions hold. The
    tensors are `(L, R, H, T, D)`.
    """

    def __init__(self, config: Shape, n_rows: int, n_tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.n_layers, n_rows, config.n_heads, n_tokens, config.d_head)
        # Zeros, since a place that is masked must still be finite: 0 · NaN is NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.n_rows, self.n_tokens = n_rows, n_tokens

    def move(self, source: int, target: int, n_tokens: int) -> None:
        """Copy the first `n_tokens` of one row over another."""
        for tensor in (self.keys, self.values):
            tensor[:, target, :, :n_tokens] = tensor[:, source, :, :n_tokens]


class Prefill:
    """Packed prompts behind their common prefix; their keys and values go to neighbouring rows of the cache."""

    def __init__(self, cache: KeyValueCache, first_row: int, lengths: Sequence[int], prefix_length: int) -> None:
        self.cache, self.own_rows = cache, slice(first_row, first_row + len(lengths))
        self.documents = PackedDocuments(lengths, prefix_length)
        n = torch.tensor(lengths)
        document = torch.repeat_interleave(n)  # (N,): which one each token behind the prefix belongs to
        places = prefix_length + torch.arange(len(document)) - (n.cumsum(0) - n)[document]
        self.rows, self.places = (first_row + document).to(cache.keys.device), places.to(cache.keys.device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        n_prefix = self.documents.prefix_length
        for cached, new in ((self.cache.keys[layer], k), (self.cache.values[layer], v)):
            new = new.to(cached.dtype)
            cached[self.own_rows, :, :n_prefix] = new[:n_prefix].transpose(0, 1)
            cached[self.rows, :, self.places] = new[n_prefix:]
        return self.documents.attend(layer, q, k, v, dropout)


class Decode:
    """One new token for each of the first rows of the cache, row r at position `lengths[r]`."""

    def __init__(self, cache: KeyValueCache, lengths: Sequence[int]) -> None:
        self.cache, device = cache, cache.keys.device
        self.n_rows, self.longest = len(lengths), max(lengths) + 1
        self.lengths = torch.tensor(lengths, device=device)
        self.rows = torch.arange(self.n_rows, device=device)
        visible = torch.arange(self.longest, device=device) <= self.lengths[:, None]
        self._bias: Tensor | None = None
        self.mask = None if min(lengths) == max(lengths) else visible[:, None, None, :]  # (R, 1, 1, T)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        keys, values = self.cache.keys[layer, : self.n_rows], self.cache.values[layer, : self.n_rows]
        keys[self.rows, :, self.lengths] = k[:, 0].to(keys.dtype)
        values[self.rows, :, self.lengths] = v[:, 0].to(values.dtype)
        same = q.dtype == keys.dtype and q.shape[-2] == k.shape[-2]
        if same and keys.shape[2] <= WASTE * self.longest and suits_products(q):
            return self._by_products(q, keys, values)
        seen = slice(None, self.longest)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            keys[:, :, seen].to(q.dtype),
            values[:, :, seen].to(q.dtype),
            self.mask,
            enable_gqa=q.shape[-2] != k.shape[-2],
        )
        return out.transpose(1, 2)

    def _by_products(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The same as products with all places of the cache, since torch would copy a part of it first."""
        n_rows, n_heads, n_places, width = keys.shape
        if self._bias is None:
            hidden = torch.arange(n_places) > self.lengths[:, None, None]
            self._bias = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill_(hidden, -math.inf)  # (R, 1, places)
        with torch.autocast("cpu", enabled=False):
            q = q.reshape(-1, width, 1)  # (R·H, D, 1)
            scores = torch.baddbmm(q.new_zeros(()), keys.flatten(0, 1), q, beta=0, alpha=width**-0.5)
            weights = scores.view(n_rows, n_heads, n_places).add_(self._bias).softmax(-1)
            out = torch.bmm(weights.view(-1, 1, n_places), values.flatten(0, 1))
        return out.view(n_rows, 1, n_heads, width)


def suits_products(q: Tensor) -> bool:
    """Whether products answer one query a row sooner: for bf16 without tiles the fused kernel takes twice as long."""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and multiplies_in_bf16() and not multiplies_in_tiles()
