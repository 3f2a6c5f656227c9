"""Attention of one new token a row with the key-value cache, as matrix products with the whole cache."""

import math
from typing import Any

import torch
from torch import Tensor

from instruct_lit.accel.compat_torch import has_amx_tiles, has_bf16_products
from instruct_lit.core.model.attention import Decode

MAX_UNUSED = 2.0  # places of the cache per filled one up to which products with all of them are faster


def attend_decode(
    layout: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float, window: int | None = None
) -> Tensor | None:
    """The kernel of `Decode`: `q` `(R, 1, H, D)`, `k` and `v` the cache's rows `(R, H, T, D)`.

    torch's fused kernel would first copy the filled part of the cache.
    """
    if not isinstance(layout, Decode) or not suits(q):
        return None
    n_rows, n_heads, n_places, width = k.shape
    if q.dtype != k.dtype or q.shape[-2] != n_heads or n_places > MAX_UNUSED * layout.longest:
        return None
    if (key := f"bias {window}") not in layout.kernel_state:
        distance = layout.lengths[:, None, None] - torch.arange(n_places)  # (R, 1, T)
        hidden = (distance < 0) | (distance >= (window or n_places))
        layout.kernel_state[key] = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill_(hidden, -math.inf)
    with torch.autocast("cpu", enabled=False):
        q = q.reshape(-1, width, 1)  # (R·H, D, 1)
        scores = torch.baddbmm(q.new_zeros(()), k.flatten(0, 1), q, beta=0, alpha=width**-0.5)
        weights = scores.view(n_rows, n_heads, n_places).add_(layout.kernel_state[key]).softmax(-1)
        out = torch.bmm(weights.view(-1, 1, n_places), v.flatten(0, 1))
    return out.view(n_rows, 1, n_heads, width)


def suits(q: Tensor) -> bool:
    """Whether products are faster: for bf16 without tile instructions the fused kernel takes twice as long."""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and has_bf16_products() and not has_amx_tiles()
