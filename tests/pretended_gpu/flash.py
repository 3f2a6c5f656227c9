"""The kernels for packed documents that torch has on a GPU alone, written out on the host (Dao 2023).

Shapes: N queries and K keys of all documents, H heads, G heads of keys and values, D width of a head.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def forward(
    q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor, max_q: int, max_k: int,
    is_causal: bool = False, scale: float | None = None, window: Sequence[int] = (-1, -1), *_: Any, **__: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`torch_attn::_varlen_attn`: output `(N, H, D)`, logarithms of the sums `(H, N)`, a state of random numbers."""
    assert all(x.dtype == torch.int32 and x.is_contiguous() for x in (starts_q, starts_k))
    assert q.dtype in HALF and q.dtype == k.dtype == v.dtype and q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    out, sums = torch.zeros_like(q), torch.zeros(q.shape[1], len(q))
    for own, keys, _, _, values, scores in _documents(q, k, v, starts_q, starts_k, window, scale):
        assert own.stop - own.start <= max_q and keys.stop - keys.start <= max_k
        sums[:, own] = scores.logsumexp(-1)
        out[own] = (scores.softmax(-1) @ values).transpose(0, 1).to(q.dtype)
    return out, sums, torch.zeros(2, dtype=torch.int64)


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, starts_q: Tensor, starts_k: Tensor,
    max_q: int, max_k: int, is_causal: bool, state: Tensor, scale: float | None = None,
    window: Sequence[int] = (-1, -1),
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`torch_attn::_varlen_attn_backward`: the gradients of q, k and v."""
    factor = scale or q.shape[-1] ** -0.5
    of_q, of_k, of_v = (torch.zeros(x.shape) for x in (q, k, v))
    for own, place, queries, keys, values, scores in _documents(q, k, v, starts_q, starts_k, window, scale):
        weights, given = scores.softmax(-1), grad[own].float().transpose(0, 1)
        of_weights = given @ values.transpose(1, 2)
        of_scores = weights * (of_weights - (given * (weights @ values)).sum(-1, keepdim=True)) * factor
        of_q[own] = (of_scores @ keys).transpose(0, 1)
        for total, part in ((of_k, of_scores.transpose(1, 2) @ queries), (of_v, weights.transpose(1, 2) @ given)):
            total[place] += part.transpose(0, 1).unflatten(1, (k.shape[1], -1)).sum(2)
    return of_q.to(q.dtype), of_k.to(k.dtype), of_v.to(v.dtype)


def _documents(
    q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor, window: Sequence[int], scale: float | None
) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor, Tensor]]:
    """Of every document: its places, and `(H, …, D)` queries, keys and values in fp32, and the masked scores."""
    bounds_q, bounds_k = starts_q.tolist(), starts_k.tolist()
    for first, last, first_key, last_key in zip(bounds_q, bounds_q[1:], bounds_k, bounds_k[1:], strict=False):
        if first == last:
            continue
        own, place = slice(first, last), slice(first_key, last_key)
        keys, values = (x[place].float().repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(0, 1) for x in (k, v))
        queries = q[own].float().transpose(0, 1)
        scores = queries @ keys.transpose(1, 2) * (scale or q.shape[-1] ** -0.5)
        n, m = scores.shape[1:]
        distance = torch.arange(m - n, m)[:, None] - torch.arange(m)  # of a key before a query
        hidden = (distance > window[0]) & (window[0] >= 0) | (distance < -window[1]) & (window[1] >= 0)
        scores = scores.masked_fill(hidden, -torch.inf)
        yield own, place, queries, keys, values, scores
