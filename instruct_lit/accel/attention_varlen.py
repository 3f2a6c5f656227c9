"""Attention of packed documents by one variable-length kernel: on a GPU in half precision.

The kernel takes sequences of any lengths side by side, each causal. Where documents continue a shared prefix, its keys
and values are repeated before those of every document.

Shapes: N tokens, K keys with the repeated prefixes, H heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor

from instruct_lit.accel.compat_torch import causal_varlen
from instruct_lit.core.model.attention import PackedDocuments


class VarlenDocuments:
    """An attention layout: documents that each attend to themselves and to the prefix that they continue.

    The prefix is a sequence of its own. `cu_queries` and `cu_keys` are the cumulative lengths, `key_rows` `(K,)` the
    tokens whose keys are read in order: the prefix, then for each document the prefix again and its own tokens. In that
    order, `own_places` `(N,)` are the indices of each token itself, `prefix_places` those of the repeated prefixes.

    Args:
        padding: lengths of further documents without the prefix; they may be 0.
        longest: an upper bound of the documents' lengths that replaces the true maximum.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        n_prefix: int,
        device: torch.device,
        padding: Sequence[int] = (),
        longest: int | None = None,
    ) -> None:
        first = [n_prefix] if n_prefix else []
        own = torch.tensor([*first, *lengths, *padding])
        continues = torch.tensor([0] * len(first) + [1] * len(lengths) + [0] * len(padding))
        keys = own + n_prefix * continues
        own_places = torch.arange(int(own.sum())) + n_prefix * torch.repeat_interleave(continues.cumsum(0), own)
        parts = [_starts(own), _starts(keys), own_places]
        if n_prefix:
            prefix = torch.arange(n_prefix)
            prefix_places = (_starts(keys)[:-1][continues > 0, None] + prefix).flatten()
            key_rows = torch.empty(int(keys.sum()), dtype=torch.long)
            key_rows[own_places] = torch.arange(len(own_places))
            key_rows[prefix_places] = prefix.repeat(len(lengths))
            parts += [prefix_places, key_rows]
        longest = longest or max([*lengths, *padding])
        self.n_prefix, self.longest_query, self.longest_key = n_prefix, max(longest, n_prefix), longest + n_prefix
        self._sizes = [len(part) for part in parts]
        flat = torch.cat(parts).to(torch.int32)
        if device.type == "cuda":
            flat = flat.pin_memory()  # copied asynchronously
        self._cut(flat.to(device, non_blocking=True))

    def _cut(self, flat: Tensor) -> None:
        self.flat = flat  # all indices, one after the other
        parts = flat.split(self._sizes)
        self.cu_queries, self.cu_keys, self.own_places = parts[:3]
        if self.n_prefix:
            self.prefix_places, self.key_rows = parts[3:]

    def at(self, flat: Tensor) -> VarlenDocuments:
        """The same documents with the indices in another tensor."""
        other = copy(self)
        other._cut(flat)
        return other

    def keys_of(self, x: Tensor) -> Tensor:
        """The rows `(K, H, D)` of `x` `(N, H, D)` that the kernel reads, with gradients."""
        return _Gather.apply(x, self) if self.n_prefix else x

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float, window: int | None = None) -> Tensor:
        assert dropout == 0.0, "the kernel does not support dropout"
        k, v = self.keys_of(k), self.keys_of(v)
        return causal_varlen(q, k, v, self.cu_queries, self.cu_keys, self.longest_query, self.longest_key, window)


class _Gather(torch.autograd.Function):
    """Rows by index; gradients of the prefix copies are summed in fp32 and in a fixed order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: VarlenDocuments) -> Tensor:  # type: ignore[override]
        ctx.places = places
        return x.index_select(0, places.key_rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        places, n_prefix = ctx.places, ctx.places.n_prefix
        own = grad.index_select(0, places.own_places)
        copies = grad.index_select(0, places.prefix_places).unflatten(0, (-1, n_prefix))
        exact = torch.promote_types(grad.dtype, torch.float32)
        own[:n_prefix] = own[:n_prefix].to(exact) + copies.sum(0, dtype=exact)
        return own, None


def attend_varlen(
    layout: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float, window: int | None = None
) -> Tensor | None:
    """The kernel of `PackedDocuments`, all `(N, H, D)`; heads of keys and values may be fewer."""
    if not isinstance(layout, PackedDocuments) or not suits(q, dropout):
        return None
    if "varlen" not in layout.kernel_state:
        layout.kernel_state["varlen"] = VarlenDocuments(layout.lengths, layout.prefix_length, q.device)
    documents: VarlenDocuments = layout.kernel_state["varlen"]
    return documents.attend(0, q, k, v, dropout, window)


def suits(q: Tensor, dropout: float) -> bool:
    """Whether the kernel supports queries `(N, H, D)`: half precision, some widths, GPUs since Ampere."""
    if not q.is_cuda or q.dtype not in (torch.float16, torch.bfloat16) or dropout > 0.0:
        return False
    return suits_width(q.shape[-1]) and _capability(q.device) >= (8, 0)


def suits_width(d_head: int) -> bool:
    """Whether the kernel supports heads of this width."""
    return d_head % 8 == 0 and d_head <= 256


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _starts(lengths: Tensor) -> Tensor:
    return torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))
