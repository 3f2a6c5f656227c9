"""RMSNorm of a model of transformers as one operation, which in training saves its input and one number per token.

As the models write it, it is six operations, two of which save the whole residual stream in fp32, with as many in the
backward pass; a step of decoding asks a GPU for each. A norm is replaced only where it agrees with this one, in bf16 up
to rounding: here all is computed in fp32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instruct_lit.accel.forwards import Forward

TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 0.01}  # relative differences up to which two results count as equal


def rms_norms(model: nn.Module, training: bool = True) -> dict[nn.Module, Forward]:
    """Forward passes of the norms of a model in one mode, for inputs in their dtype.

    Args:
        training: The mode; those of the other may be replaced meanwhile.
    """
    norms = [m for m in model.modules() if "RMSNorm" in type(m).__name__ and _is_its_own(m)]
    offsets = {m: offset for m in norms if (offset := _offset_of(m)) is not None}
    return {m: partial(_forward, m, m.forward, offset, training) for m, offset in offsets.items()}


def _is_its_own(norm: nn.Module) -> bool:
    """Whether a norm has one input, others have a gate, and nothing else has replaced its forward pass."""
    forward = vars(norm).get("forward")
    n_inputs = len(signature(norm.forward).parameters)
    return n_inputs == 1 and (forward is None or getattr(forward, "func", None) is _forward)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, offset: float = 0.0) -> Tensor:
    """x / √(mean(x²) + ε) · (weight + offset) for `x` `(…, C)` and `weight` `(C,)` (Zhang & Sennrich 2019)."""
    if x.device.type == "cpu":  # where torch's own is several operations
        return _RMSNorm.apply(x, weight, epsilon, offset)
    with torch.autocast(x.device.type, enabled=False):  # later versions of torch would return fp32
        return F.rms_norm(x, weight.shape, weight + offset if offset else weight, epsilon)


@torch.no_grad()
def _offset_of(norm: nn.Module) -> float | None:
    """What a norm adds to its weight, 1 in Gemma; None if it computes something else, or the sum would be rounded."""
    weight, epsilon = getattr(norm, "weight", None), _epsilon_of(norm)
    if not isinstance(weight, nn.Parameter) or weight.ndim != 1 or weight.dtype not in TOLERANCES or epsilon is None:
        return None
    if hasattr(weight, "full_tensor"):  # in shards
        return None
    x = (1 + torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0))).to(weight)
    expected = norm(x)
    tolerance = TOLERANCES[weight.dtype] * expected.norm()
    offsets = (0.0, 1.0) if weight.dtype == torch.float32 else (0.0,)
    return next((o for o in offsets if (rms_norm(x, weight, epsilon, o) - expected).norm() <= tolerance), None)


def _epsilon_of(norm: nn.Module) -> float | None:
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    return epsilon if isinstance(epsilon, float) else None


def _forward(norm: Any, plain: Callable[[Tensor], Tensor], offset: float, training: bool, x: Tensor) -> Tensor:
    if norm.training is not training or x.dtype != norm.weight.dtype:
        return plain(x)
    epsilon = _epsilon_of(norm)
    assert epsilon is not None
    return rms_norm(x, norm.weight, epsilon, offset)


class _RMSNorm(torch.autograd.Function):
    """`rms_norm` with its gradients written out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, scale := _scale(_exact(x), epsilon), weight)
        ctx.offset = offset
        return (_exact(x) * scale).mul_(weight + offset if offset else weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # type: ignore[override]
        x, scale, weight = ctx.saved_tensors
        exact_x, grad, factor = _exact(x), _exact(grad), _exact(weight + ctx.offset if ctx.offset else weight)
        product = (grad * exact_x).flatten(0, -2)
        along = (product @ factor).view_as(scale) * scale.pow(3).div_(-x.shape[-1])
        grad_x = (grad * factor).mul_(scale).addcmul_(exact_x, along).to(x.dtype)
        return grad_x, (scale.flatten() @ product).to(weight) if ctx.needs_input_grad[1] else None, None, None


def _exact(x: Tensor) -> Tensor:
    """`x` in fp32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _scale(x: Tensor, epsilon: float) -> Tensor:
    """1 / √(mean(x²) + ε) of each token."""
    squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    return squares.div_(x.shape[-1]).add_(epsilon).rsqrt_()
