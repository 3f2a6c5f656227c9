"""Our attention function in transformers' registry, which hands queries, keys and values to the layout of the batch.

Shapes: B rows, H heads, T tokens, D the width of a head.
"""

from typing import Any

import torch
from torch import Tensor

from instruct_lit.core.model.attention import AttentionLayout
from instruct_lit.hf.blocks import hidden_from_compiler
from instruct_lit.hf.compat_transformers import sdpa_attention
from instruct_lit.hf.probe import Spy, check_supported

NAME = "instruct_lit"  # in the registry
InLayout = tuple[AttentionLayout, bool]


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, layout: InLayout | None = None, **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """The attention function for transformers' registry: `query` `(B, H, T, D)` in, `(B, T, H, D)` out.

    `layout` is the layout, and whether its tokens are one flat axis `(N,)`.
    """
    if layout is None:
        return sdpa_attention(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options)
    d_head, d_value = query.shape[-1], value.shape[-1]
    if d_head != d_value:  # of DeepSeek's; kernels and caches have one width, and zeros change nothing
        d_padded, scaling = max(d_head, d_value), d_head**-0.5 if scaling is None else scaling
        q, k, v = (torch.nn.functional.pad(x, (0, d_padded - x.shape[-1])) for x in (query, key, value))
        attended, _ = attend(module, q, k, v, attention_mask, scaling, dropout, layout, **options)
        return attended[..., :d_value], None
    check_supported(options)
    if isinstance(layout[0], Spy):
        layout[0].attention = module
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if scaling is not None and scaling != d_head**-0.5:
        q = q * (scaling * d_head**0.5)
    if torch.is_autocast_enabled(q.device.type):  # rotary embeddings are fp32, the products need not be
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    return _attention(module, q, k, v, dropout, options.get("sliding_window"), layout), None


def _attend_in_layout(
    module: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float, window: int | None, layout: InLayout
) -> Tensor:
    """The attended values of `(B, T, H, D)`; of a flat batch B is 1."""
    how, flat = layout
    if flat:
        return how.attend(module.layer_idx, q[0], k[0], v[0], dropout, window)[None]
    return how.attend(module.layer_idx, q, k, v, dropout, window)


_attention = _attend_in_layout


def hide_from_compiler() -> None:
    """Let calls of layouts interrupt compiled code."""
    global _attention
    _attention = hidden_from_compiler(_attend_in_layout)
