"""Working memory of the weights on a CPU: copies rounded once a step, gradients that stay allocated.

A step of a small batch is bound by memory, not by arithmetic: autocast converts every weight before its product and
every gradient after it, and fresh gradients cost page faults. Here each matrix has one working copy, which the
optimizer renews as it passes over the weights anyway, and one gradient buffer, into which the product of the backward
pass is written; what is large and passing has memory that stays, too. The numbers are those of autocast: products in
bf16 of weights rounded once, fp32 parameters updated by gradients as the product gives them.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instruct_lit.accel.compat_torch import has_amx_tiles
from instruct_lit.accel.hardware import KEPT_BYTES

HUGE_PAGE = 2 * 2**20
CHUNK = 2**19  # elements whose conversions stay in the cache: 10 MB with their moments
STRIP, SHORT_STRIP = 96, 32  # rows that are transposed at once


class Scratch:
    """Memory on huge pages for tensors that live within one call and are too large for the system to keep it."""

    def __init__(self) -> None:
        self._blocks: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor, a large one in the place of the one that had this name before."""
        n_bytes = math.prod(shape) * dtype.itemsize
        if n_bytes <= KEPT_BYTES:
            return torch.empty(*shape, dtype=dtype)
        if name not in self._blocks or len(self._blocks[name]) < n_bytes:
            self._blocks.pop(name, None)
            self._blocks[name] = huge_empty(n_bytes * 5 // 4, torch.uint8)  # what is not used is not there
        return self._blocks[name][:n_bytes].view(dtype).view(*shape)


@dataclass
class Working:
    """What the products with one parameter use: `weight`, its rounded copy, and `gradient`, the buffer of its gradient.

    In the parameter's own precision the copy is the parameter itself.
    """

    parameter: Tensor
    weight: Tensor
    gradient: Tensor
    scratch: Scratch = field(default_factory=Scratch)
    _cut: tuple[list[int], list[tuple[Tensor, ...]]] = ([], [])

    def collect(self, rows: Tensor, x: Tensor) -> None:
        """Add `rowsᵀ @ x` to the parameter's gradient, in place in its buffer."""
        rows_t, first = transposed(rows, self.scratch), self.parameter.grad is None
        if self.gradient.dtype != x.dtype:
            product = torch.mm(rows_t, x, out=self.scratch.take("product", self.gradient.shape, x.dtype))
            (self.gradient.copy_ if first else self.gradient.add_)(product)
        elif first:
            torch.mm(rows_t, x, out=self.gradient)
        else:  # added within the product, so that the sum is rounded once
            self.gradient.addmm_(rows_t, x)
        self.parameter.grad = self.gradient

    def pieces(self, *moments: Tensor) -> list[tuple[Tensor, ...]]:
        """Parameter, its gradient, the copy and the `moments`, cut into the same pieces, which stay in the cache.

        They are cut once, and again where one of them was replaced, as a loaded checkpoint does.
        """
        assert self.parameter.grad is not None
        whole = [self.parameter.detach(), self.parameter.grad, self.weight, *moments]
        places = [x.data_ptr() for x in whole]
        if places != self._cut[0]:
            self._cut = places, list(zip(*(x.view(-1).split(CHUNK) for x in whole), strict=True))
        return self._cut[1]

    def renew(self) -> None:
        """Round the parameter again."""
        if self.weight.dtype != self.parameter.dtype:
            self.weight.copy_(self.parameter.detach())


class LowPrecisionWeights:
    """Working copies in `dtype` and gradient buffers in `gradient_dtype` of a model's trainable matrices.

    From `attach` to `detach` linear layers in training mode multiply with the copies, and the gradient of their weights
    and of `head` is the buffer. In evaluation mode they do as ever, so that whoever swaps weights for a validation is
    not deceived.
    """

    def __init__(self, model: nn.Module, head: Tensor, dtype: torch.dtype, gradient_dtype: torch.dtype) -> None:
        self.linears = [m for m in model.modules() if type(m) is nn.Linear and m.weight.requires_grad]
        parameters = {id(p): p for p in [*(m.weight for m in self.linears), head] if p.requires_grad}
        sizes = [p.numel() for p in parameters.values()]
        n = sum(sizes)
        gradients = huge_empty(n, gradient_dtype).split(sizes)
        copies = huge_empty(n if dtype != head.dtype else 0, dtype).split(sizes if dtype != head.dtype else [0])
        self.of: dict[int, Working] = {}
        scratch = Scratch()
        for i, (key, p) in enumerate(parameters.items()):
            weight = copies[i].view_as(p) if dtype != head.dtype else p.detach()
            self.of[key] = Working(p, weight, gradients[i].view_as(p), scratch)
        self.gradient_dtype = gradient_dtype

    def attach(self) -> LowPrecisionWeights:
        """Put the working memory in use."""
        for working in self.of.values():
            working.renew()
            self._set_gradient_dtype(working.parameter, self.gradient_dtype)
        for module in self.linears:
            module.forward = partial(_linear_forward, module, self.of[id(module.weight)])  # type: ignore[method-assign]
        return self

    def detach(self) -> None:
        """Give the model back as it was."""
        for module in self.linears:
            module.__dict__.pop("forward", None)
        for working in self.of.values():
            self._set_gradient_dtype(working.parameter, working.parameter.dtype)

    @staticmethod
    def _set_gradient_dtype(parameter: Tensor, dtype: torch.dtype) -> None:
        parameter.grad = None
        if dtype != parameter.dtype or can_hold_other_gradients():
            parameter.grad_dtype = dtype  # type: ignore[attr-defined]


def can_hold_other_gradients() -> bool:
    """Whether this torch lets a parameter have a gradient of another precision."""
    return hasattr(Tensor, "grad_dtype")


def _linear_forward(module: nn.Linear, working: Working, x: Tensor) -> Tensor:
    if not module.training:
        return F.linear(x, module.weight, module.bias)
    with torch.autocast("cpu", enabled=False):
        x = x.to(working.weight.dtype)
        bias = None if module.bias is None else module.bias.to(x.dtype)
        return _Linear.apply(x, module.weight, bias, working)


class _Linear(torch.autograd.Function):
    """x·Wᵀ + b with the working copy; the weight's gradient goes into its buffer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, working: Working) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        ctx.working = working
        return F.linear(x, working.weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        ctx.working.collect(rows, x.flatten(0, -2))
        grad_x = grad @ ctx.working.weight if ctx.needs_input_grad[0] else None
        return grad_x, None, rows.sum(0) if ctx.needs_input_grad[2] else None, None


def transposed(x: Tensor, scratch: Scratch) -> Tensor:
    """`xᵀ`, in half precision laid out anew for a processor with tiles, until the next is.

    There a bf16 product whose first factor lies transposed takes up to three times as long as one that finds it in
    order, and torch's own copy in one piece uses one core. Elsewhere it takes as long either way.
    """
    if x.dtype.itemsize != 2 or not has_amx_tiles():
        return x.t()
    n, width = x.shape
    copy = scratch.take("transposed", (width, n), x.dtype)
    # Rows at distances of 2 KiB share their places in the cache, long ones have a page of memory each.
    strip = SHORT_STRIP if width % 1024 == 0 or width > 8192 else STRIP
    for own, rows in zip(copy.split(strip, 1), x.split(strip), strict=True):
        own.copy_(rows.t())
    return copy


def huge_empty(n: int, dtype: torch.dtype) -> Tensor:
    """An uninitialised vector on huge pages where the system has them: fewer faults, fewer misses of address caches."""
    if not n or not sys.platform.startswith("linux"):
        return torch.empty(n, dtype=dtype)
    # One page more than needed, so that the vector can begin at a page of its own.
    block = mmap.mmap(-1, (math.ceil(n * dtype.itemsize / HUGE_PAGE) + 1) * HUGE_PAGE, flags=mmap.MAP_PRIVATE)
    try:
        block.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without them
        pass
    offset = -ctypes.addressof(ctypes.c_char.from_buffer(block)) % HUGE_PAGE
    return torch.frombuffer(block, dtype=dtype, count=n, offset=offset)
