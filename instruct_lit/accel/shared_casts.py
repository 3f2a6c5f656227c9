"""Inputs of products in half precision, rounded once for all products of the same input.

Autocast rounds an input anew for every product: the output of a norm three times for queries, keys and values, and
twice for the halves of an MLP; each copy is kept for the backward pass, and each gradient converted back by itself.
"""

from __future__ import annotations

import weakref
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instruct_lit.accel.forwards import Forward


class Casts:
    """Rounds inputs; an input that was the last one gives the same tensor again, kept no longer than the input.

    Behind it is all that the forward pass keeps for the backward pass. An input that was changed in place is rounded
    anew, unless it is an inference tensor, which has no version; models do not change inputs between their products.
    """

    def __init__(self) -> None:
        self._last: tuple[weakref.ref[Tensor], int, Tensor] | None = None

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """`x` in `dtype`; the gradients of its uses are summed in `dtype`."""
        if x.dtype == dtype:
            return x
        current = 0 if x.is_inference() else x._version
        if self._last is not None:
            source, version, rounded = self._last
            is_same = source() is x and version == current and rounded.dtype == dtype
            if is_same and rounded.requires_grad == (x.requires_grad and torch.is_grad_enabled()):
                return rounded
        rounded = x.to(dtype)
        self._last = weakref.ref(x, self._forget), current, rounded
        return rounded

    def _forget(self, source: weakref.ref[Tensor]) -> None:
        if self._last is not None and self._last[0] is source:
            self._last = None


def shared_casts(model: nn.Module) -> dict[nn.Module, Forward]:
    """Forward passes of the linear layers of a model that share rounded inputs in training under autocast."""
    casts = Casts()
    return {m: partial(_forward, m, casts) for m in model.modules() if type(m) is nn.Linear}


def _forward(module: nn.Linear, casts: Casts, x: Tensor) -> Tensor:
    device = x.device.type
    if module.training and torch.is_autocast_enabled(device):
        x = casts(x, torch.get_autocast_dtype(device))
    return F.linear(x, module.weight, module.bias)
