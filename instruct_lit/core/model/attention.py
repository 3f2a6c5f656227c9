"""Which token may attend to which: one interface, so that the model does not know how a batch is laid out.

A layout receives queries, keys and values `(…, H, D)` over the batch's token axes and returns the attended values in
the same shape, by `scaled_dot_product_attention` unless one of `KERNELS` computes it.

Shapes: B rows of a batch, R rows of the cache, T tokens of a row, N tokens of a flat batch, H heads, D width of a head.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class AttentionLayout(Protocol):
    """How the tokens of one forward pass see each other."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float, window: int | None = None) -> Tensor:
        """Return softmax(q·kᵀ/√D)·v over what each query may see, in the shape of `q`.

        `k` and `v` may have fewer heads than `q`, each shared by neighbouring query heads (Ainslie et al. 2023). With a
        `window` a query sees the last tokens of its text only, as many, itself included (Beltagy et al. 2020).
        """
        ...


# From the arguments of a layout's plain implementation (layout, q, k, v, dropout, window) to the same result, computed
# faster; None where layout, device, dtype or size is not supported. `instruct_lit.accel.install` registers some.
AttentionKernel = Callable[[Any, Tensor, Tensor, Tensor, float, int | None], Tensor | None]
KERNELS: list[AttentionKernel] = []


def try_kernels(layout: AttentionLayout, *arguments: Any) -> Tensor | None:
    """Return the result of the first registered kernel that supports these arguments, None if there is none."""
    results = (kernel(layout, *arguments) for kernel in KERNELS)
    return next((out for out in results if out is not None), None)


def repeat_kv(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values `(…, H, D)` with as many heads as the queries: each head repeated for its group of queries."""
    n = q.shape[-2] // k.shape[-2]
    return (k, v) if n == 1 else (k.repeat_interleave(n, -2), v.repeat_interleave(n, -2))


class CausalRows:
    """Every row of a `(B, T)` batch is one sequence, padded on the right: no real token sees padding."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float, window: int | None = None) -> Tensor:
        out = try_kernels(self, q, k, v, dropout, window)
        if out is not None:
            return out
        k, v = repeat_kv(q, k, v)
        if window is not None and window < q.shape[-3]:
            return _causal(q, k, v, dropout, window)
        q, k, v = (x.transpose(-3, -2) for x in (q, k, v))  # (B, H, T, D)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True).transpose(-3, -2)


class PackedDocuments:
    """Documents of the given `lengths` one after the other on a single token axis `(N,)`, behind a shared prefix.

    The first `prefix_length` tokens are the prefix that every document continues: computed once and seen by all, so the
    result is what each document alone, with the prefix before it, would give ("prefix grouping", arXiv 2506.05433).
    `kernel_state` holds what kernels compute once for all layers.
    """

    def __init__(self, lengths: Sequence[int], prefix_length: int = 0) -> None:
        assert len(lengths) > 0 and min(lengths) > 0, "a document has at least one token"
        self.lengths, self.prefix_length = list(lengths), prefix_length
        self.n_tokens = prefix_length + sum(self.lengths)
        self.kernel_state: dict[str, Any] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float, window: int | None = None) -> Tensor:
        assert q.shape[0] == self.n_tokens, f"{q.shape[0]} tokens for a layout of {self.n_tokens}"
        out = try_kernels(self, q, k, v, dropout, window)
        if out is not None:
            return out
        k, v = repeat_kv(q, k, v)
        prefix_q, prefix_k, prefix_v = (x[: self.prefix_length] for x in (q, k, v))
        outputs = [_causal(prefix_q, prefix_k, prefix_v, dropout, window)] if self.prefix_length else []
        documents = (x[self.prefix_length :].split(self.lengths) for x in (q, k, v))
        for own_q, own_k, own_v in zip(*documents, strict=True):
            keys, values = torch.cat((prefix_k, own_k)), torch.cat((prefix_v, own_v))
            outputs.append(_causal(own_q, keys, values, dropout, window))
        return torch.cat(outputs)


def _causal(q: Tensor, k: Tensor, v: Tensor, dropout: float, window: int | None) -> Tensor:
    """Causal attention of one document, all `(…, T, H, D)`; the last query is the last key, also of more keys."""
    n_queries, n_keys = q.shape[-3], k.shape[-3]
    places = torch.arange(n_keys, device=q.device)
    distance = places[n_keys - n_queries :, None] - places
    visible = (distance >= 0) & (distance < (window or n_keys))
    q, k, v = (x.transpose(-3, -2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, visible, dropout_p=dropout).transpose(-3, -2)


class KeyValueCache:
    """Keys and values of `n_rows` sequences of at most `n_tokens` tokens, allocated once: of each layer `(R, H, T, D)`.

    The token at position p of a row is stored at index p: rows are not padded on the left, so absolute positions hold.
    `config` is that of a `CausalLM`, `tensors` are the keys of all layers, then their values.
    """

    def __init__(self, config: Any, n_rows: int, n_tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        shapes = [(n_rows, n_heads, n_tokens, d_head) for n_heads, d_head in config.kv_heads]
        # Zeros, since masked values must still be finite: 0 · NaN is NaN.
        self.tensors = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes * 2]
        self.keys, self.values = self.tensors[: len(shapes)], self.tensors[len(shapes) :]
        self.n_rows, self.n_tokens, self.device = n_rows, n_tokens, device

    def move(self, source: int, target: int, n_tokens: int) -> None:
        """Copy the first `n_tokens` of one row over another."""
        for tensor in self.tensors:
            tensor[target, :, :n_tokens] = tensor[source, :, :n_tokens]


class Prefill:
    """Packed prompts behind their common prefix; their keys and values are stored in consecutive rows of the cache."""

    def __init__(self, cache: KeyValueCache, first_row: int, lengths: Sequence[int], prefix_length: int) -> None:
        self.cache, self.own_rows = cache, slice(first_row, first_row + len(lengths))
        self.documents = PackedDocuments(lengths, prefix_length)
        n = torch.tensor(lengths)
        document = torch.repeat_interleave(n)  # (N,): the document of each token behind the prefix
        positions = prefix_length + torch.arange(len(document)) - (n.cumsum(0) - n)[document]
        self.rows, self.positions = (first_row + document).to(cache.device), positions.to(cache.device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float, window: int | None = None) -> Tensor:
        n_prefix = self.documents.prefix_length
        for cached, new in ((self.cache.keys[layer], k), (self.cache.values[layer], v)):
            new = new.to(cached.dtype)
            cached[self.own_rows, :, :n_prefix] = new[:n_prefix].transpose(0, 1)
            cached[self.rows, :, self.positions] = new[n_prefix:]
        return self.documents.attend(layer, q, k, v, dropout, window)


class Decode:
    """One new token for each of the first rows of the cache, row r at position `lengths[r]`.

    Kernels get the cache's rows `(R, H, T, D)`; `kernel_state` holds what they compute once for all layers.
    """

    def __init__(self, cache: KeyValueCache, lengths: Sequence[int]) -> None:
        self.cache, device = cache, cache.device
        self.n_rows, self.longest = len(lengths), max(lengths) + 1
        self.lengths = torch.tensor(lengths, device=device)
        self.rows = torch.arange(self.n_rows, device=device)
        self._masks: dict[int, Tensor | None] = {self.longest: None} if min(lengths) == max(lengths) else {}
        self.kernel_state: dict[str, Any] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float, window: int | None = None) -> Tensor:
        keys, values = self.cache.keys[layer][: self.n_rows], self.cache.values[layer][: self.n_rows]
        keys[self.rows, :, self.lengths] = k[:, 0].to(keys.dtype)
        values[self.rows, :, self.lengths] = v[:, 0].to(values.dtype)
        out = try_kernels(self, q, keys, values, dropout, window)
        if out is not None:
            return out
        keys, values = (x[:, :, : self.longest].to(q.dtype) for x in (keys, values))
        window = min(window or self.longest, self.longest)
        if window not in self._masks:
            distance = self.lengths[:, None] - torch.arange(self.longest, device=q.device)
            self._masks[window] = ((distance >= 0) & (distance < window))[:, None, None]  # (R, 1, 1, T)
        q, is_grouped, mask = q.transpose(1, 2), q.shape[-2] != k.shape[-2], self._masks[window]
        return F.scaled_dot_product_attention(q, keys, values, mask, enable_gqa=is_grouped).transpose(1, 2)
