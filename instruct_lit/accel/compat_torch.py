"""What acceleration uses of torch that is not documented, each with the reason; `tests/accel/test_compat_torch.py`
names the attribute that a new version of torch lacks."""

from __future__ import annotations

import torch
from torch import Tensor


def has_bf16_products() -> bool:
    """Whether torch's CPU matrix library (oneDNN) multiplies bf16 on this processor; without it bf16 is very slow.

    Private: `torch.ops.mkldnn._is_mkldnn_bf16_supported`, since no public function reports it. Without it: False.
    """
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and torch.backends.mkldnn.is_available() and supported()


def has_amx_tiles() -> bool:
    """Whether this processor has matrix tile instructions (Intel's AMX).

    Private: `torch.cpu._is_amx_tile_supported`, since no public function reports it. Without it: False.
    """
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return supported is not None and bool(supported())


def has_packed_products() -> bool:
    """Whether `packed_weight` and `packed_linear` exist on this machine."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return has_bf16_products() and all(hasattr(torch.ops.mkldnn, name) for name in names)


def packed_weight(weight: Tensor, n_rows: int) -> Tensor:
    """A bf16 matrix in the memory order of oneDNN's products, chosen for inputs of `n_rows` rows; others work too.

    Private: `torch.ops.mkldnn._reorder_linear_weight`, used by torch's compiler on CPUs; without it the matrix is
    reordered in every product.
    """
    return torch.ops.mkldnn._reorder_linear_weight(weight, n_rows)


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """`x` times a packed matrix plus `bias`, then GELU (tanh) if wanted.

    Private: `torch.ops.mkldnn._linear_pointwise`, the only operator that takes a packed matrix.
    """
    name, form = ("gelu", "tanh") if gelu else ("none", "")
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, name, [], form)


def softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    """The gradient of a softmax over the last axis with output `weights`, given the gradient of its output.

    Private: `torch._softmax_backward_data`, the fused kernel that autograd calls; in public operators it takes three
    passes over memory.
    """
    return torch._softmax_backward_data(grad, weights, -1, weights.dtype)
