"""RMSNorm of a model of transformers in training: one operation that saves its input and one number per token.

As the models write it, it is six operations, two of which save the whole residual stream in fp32, with as many in the
backward pass. A norm is replaced only where it agrees with this one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOLERANCE = 1e-6  # relative difference in fp32 up to which two results count as equal


class RMSNorms:
    """The norms of a model; from `attach` to `detach` they are replaced in training mode, for inputs in fp32."""

    def __init__(self, model: nn.Module) -> None:
        norms = [m for m in model.modules() if "RMSNorm" in type(m).__name__ and "forward" not in vars(m)]
        offsets = {module: _offset_of(module) for module in norms}
        self.norms = {module: offset for module, offset in offsets.items() if offset is not None}

    def attach(self) -> RMSNorms:
        """Replace them from now on."""
        for norm, offset in self.norms.items():
            norm.forward = partial(_forward, norm, norm.forward, offset)  # type: ignore[method-assign]
        return self

    def detach(self) -> None:
        """Restore the model."""
        for norm in self.norms:
            norm.__dict__.pop("forward", None)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, offset: float = 0.0) -> Tensor:
    """x / √(mean(x²) + ε) · (weight + offset) for `x` `(…, C)` and `weight` `(C,)` in fp32 (Zhang & Sennrich 2019)."""
    if x.device.type == "cpu":  # where torch's own is several operations
        return _RMSNorm.apply(x, weight, epsilon, offset)
    return F.rms_norm(x, weight.shape, weight + offset if offset else weight, epsilon)


@torch.no_grad()
def _offset_of(norm: nn.Module) -> float | None:
    """What a norm adds to its weight, 1 in Gemma; None if it computes something else."""
    weight, epsilon = getattr(norm, "weight", None), _epsilon_of(norm)
    if weight is None or weight.ndim != 1 or weight.dtype != torch.float32 or epsilon is None:
        return None
    x = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight.device)
    expected = norm(x)
    tolerance = TOLERANCE * expected.norm()
    return next((o for o in (0.0, 1.0) if (rms_norm(x, weight, epsilon, o) - expected).norm() <= tolerance), None)


def _epsilon_of(norm: nn.Module) -> float | None:
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    return epsilon if isinstance(epsilon, float) else None


def _forward(norm: Any, plain: Callable[[Tensor], Tensor], offset: float, x: Tensor) -> Tensor:
    if not norm.training or x.dtype != torch.float32:
        return plain(x)
    epsilon = _epsilon_of(norm)
    assert epsilon is not None
    return rms_norm(x, norm.weight, epsilon, offset)


class _RMSNorm(torch.autograd.Function):
    """`rms_norm` with its gradients written out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:  # type: ignore[override]
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = scale.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, scale, weight)
        ctx.offset = offset
        return (x * scale).mul_(weight + offset if offset else weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # type: ignore[override]
        x, scale, weight = ctx.saved_tensors
        weight = weight + ctx.offset if ctx.offset else weight
        product = (grad * x).flatten(0, -2)
        along = (product @ weight).view_as(scale) * scale.pow(3).div_(-x.shape[-1])
        grad_x = (grad * weight).mul_(scale).addcmul_(x, along)
        return grad_x, scale.flatten() @ product if ctx.needs_input_grad[1] else None, None, None
