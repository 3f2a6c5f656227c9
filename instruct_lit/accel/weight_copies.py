"""Low-precision copies of the weights on a CPU, rounded once per step, and gradients that stay allocated.

A step of a small batch is bound by memory, not by arithmetic: autocast converts every weight before its product and
every gradient after it, and new gradients cost page faults. Here each matrix has one copy, which the optimizer renews
as it updates the weight, and one gradient buffer, into which the product of the backward pass is written; large
temporary tensors reuse their memory as well. The numbers are those of autocast: products in bf16 of rounded weights,
fp32 parameters updated by the gradients of these products.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instruct_lit.accel.compat_torch import has_amx_tiles
from instruct_lit.accel.forwards import ReplacedForwards
from instruct_lit.accel.hardware import KEPT_BYTES
from instruct_lit.accel.kernel_heap import product
from instruct_lit.accel.shared_casts import Casts

HUGE_PAGE, LINE = 2 * 2**20, 64  # bytes of a page, and of a line of the cache
CHUNK = 2**19  # elements whose conversions stay in the cache: 10 MB with their moments
STRIP, SHORT_STRIP = 96, 32  # rows that are transposed at once


class Scratch:
    """Memory on huge pages for large temporary tensors, which the allocator would return to the system."""

    def __init__(self) -> None:
        self._blocks: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor; a large one reuses the memory of the previous one of this name."""
        n_bytes = math.prod(shape) * dtype.itemsize
        if n_bytes <= KEPT_BYTES:
            return torch.empty(*shape, dtype=dtype)
        if name not in self._blocks or len(self._blocks[name]) < n_bytes:
            self._blocks.pop(name, None)
            # A quarter more than needed: pages that are never touched cost nothing.
            (self._blocks[name],) = huge_empty([n_bytes * 5 // 4], torch.uint8)
        return self._blocks[name][:n_bytes].view(dtype).view(*shape)


@dataclass
class WeightCopy:
    """The tensors that products with one parameter use: `weight`, its rounded copy, and `gradient`, a buffer.

    In the parameter's own precision the copy is the parameter itself.
    """

    parameter: Tensor
    weight: Tensor
    gradient: Tensor
    scratch: Scratch = field(default_factory=Scratch)
    _cut: tuple[list[int], list[tuple[Tensor, ...]]] = ([], [])  # addresses, and the pieces of the tensors there

    def collect(self, rows: Tensor, x: Tensor) -> None:
        """Add `rowsᵀ @ x` to the parameter's gradient, in place in its buffer."""
        rows_t, first = transposed(rows, self.scratch), self.parameter.grad is None
        if self.gradient.dtype != x.dtype:
            space = self.scratch.take("product", self.gradient.shape, x.dtype)
            (self.gradient.copy_ if first else self.gradient.add_)(product(torch.mm, rows_t, x, out=space))
        elif first:
            product(torch.mm, rows_t, x, out=self.gradient)
        else:  # added within the product, so that the sum is rounded once
            product(Tensor.addmm_, self.gradient, rows_t, x)
        self.parameter.grad = self.gradient

    def collect_rows(self, ids: Tensor, grad: Tensor) -> None:
        """Add gradients `(…, C)` of the rows `ids` `(…)` to the parameter's, each row's sum rounded once."""
        if self.parameter.grad is None:
            self.parameter.grad = self.gradient.zero_()
        found, places = ids.flatten().unique(return_inverse=True)
        rows = torch.zeros(len(found), grad.shape[-1], dtype=grad.dtype).index_add_(0, places, grad.flatten(0, -2))
        self.gradient.index_add_(0, found, rows.to(self.gradient.dtype))

    def pieces(self, *moments: Tensor) -> list[tuple[Tensor, ...]]:
        """Parameter, its gradient, the copy and the `moments`, cut into the same pieces, which stay in the cache.

        They are cut once, and again after one of them was replaced, as loading a checkpoint does.
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
    """Copies in `dtype` and gradient buffers in `gradient_dtype` of a model's matrices; frozen ones have no gradient.

    From `attach` to `detach`, linear layers in training mode multiply with the copies, and the gradient of their
    weights and of `head` is the buffer. In evaluation mode they use the parameters, so that a callback may swap
    weights for a validation.
    """

    def __init__(self, model: nn.Module, head: Tensor, dtype: torch.dtype, gradient_dtype: torch.dtype) -> None:
        linears = [m for m in model.modules() if type(m) is nn.Linear]
        self.linears = [m for m in linears if m.weight.requires_grad]
        self.frozen = {m: m.weight.detach().to(dtype) for m in linears if not m.weight.requires_grad}
        trained = [*(m.weight for m in self.linears), head]  # a head with a bias is made of two parameters
        parameters = {id(p): p for p in trained if p.requires_grad and p.is_leaf}.values()
        sizes, scratch = [p.numel() for p in parameters], Scratch()
        gradients = huge_empty(sizes, gradient_dtype)
        is_rounded = any(p.dtype != dtype for p in parameters)
        rounded = huge_empty(sizes, dtype) if is_rounded else parameters
        self.of = {
            id(p): WeightCopy(p, weight.detach().view_as(p), gradient.view_as(p), scratch)
            for p, weight, gradient in zip(parameters, rounded, gradients, strict=True)
        }
        low_rank: list[Any] = [m for m in model.modules() if hasattr(m, "low_rank_parts")]
        self.low_rank = [m for m in low_rank if self._is_low_rank(*m.low_rank_parts()[:3])]
        tables = [m for m in model.modules() if type(m) is nn.Embedding and id(m.weight) in self.of]
        self.embeddings = [m for m in tables if not (m.sparse or m.scale_grad_by_freq or m.max_norm)]
        self.gradient_dtype = gradient_dtype
        if not head.requires_grad:
            weight = next((w for m, w in self.frozen.items() if m.weight is head), None)
            weight = head.detach().to(dtype) if weight is None else weight
            self.of[id(head)] = WeightCopy(head, weight, weight.new_empty(0), scratch)

    def tensors(self) -> Iterator[Tensor]:
        """What it holds beside the model."""
        yield from self.frozen.values()
        for copy in self.of.values():
            yield from (copy.weight, copy.gradient)

    def _is_low_rank(self, base: nn.Module, down: nn.Linear, up: nn.Linear) -> bool:
        """Whether both updates of a frozen layer are trained, without a bias."""
        return base in self.frozen and all(id(m.weight) in self.of and m.bias is None for m in (down, up))

    def attach(self) -> LowPrecisionWeights:
        """Use the copies from now on."""
        casts = Casts()
        for copy in self.of.values():
            copy.renew()
            self._set_gradient_dtype(copy.parameter, self.gradient_dtype)
        forwards: dict[nn.Module, Any] = {
            m: partial(_linear_forward, m, self.of[id(m.weight)], casts) for m in self.linears
        }
        forwards |= {table: partial(_embedding_forward, table, self.of[id(table.weight)]) for table in self.embeddings}
        for module in self.low_rank:
            base, down, up, _, _ = module.low_rank_parts()
            copies = self.frozen[base], self.of[id(down.weight)], self.of[id(up.weight)]
            forwards[module] = partial(_low_rank_forward, module, *copies, casts)
        forwards |= {m: partial(_frozen_forward, m, weight, casts) for m, weight in self.frozen.items()}
        self._forwards = ReplacedForwards(forwards).attach()
        return self

    def detach(self) -> None:
        """Restore the model."""
        self._forwards.detach()
        for copy in self.of.values():
            self._set_gradient_dtype(copy.parameter, copy.parameter.dtype)

    @staticmethod
    def _set_gradient_dtype(parameter: Tensor, dtype: torch.dtype) -> None:
        if parameter.requires_grad:
            parameter.grad = None
            parameter.grad_dtype = dtype  # type: ignore[attr-defined]


def _linear_forward(module: nn.Linear, copy: WeightCopy, casts: Casts, x: Tensor) -> Tensor:
    if not module.training:
        return F.linear(x, module.weight, module.bias)
    return _Linear.apply(casts(x, copy.weight.dtype), module.weight, module.bias, copy)


def _frozen_forward(module: nn.Linear, weight: Tensor, casts: Casts, x: Tensor) -> Tensor:
    if not module.training:
        return F.linear(x, module.weight, module.bias)
    return F.linear(casts(x, weight.dtype), weight, None if module.bias is None else module.bias.to(weight.dtype))


def _low_rank_forward(module: Any, weight: Tensor, down: WeightCopy, up: WeightCopy, casts: Casts, x: Tensor) -> Tensor:
    base, _, _, dropout, scaling = module.low_rank_parts()
    if not module.training or not isinstance(dropout, nn.Identity):
        return type(module).forward(module, x)
    parameters = base.bias, down.parameter, up.parameter
    return _LowRank.apply(casts(x, weight.dtype), *parameters, weight, down, up, scaling)


def _embedding_forward(module: nn.Embedding, copy: WeightCopy, ids: Tensor) -> Tensor:
    return _Embedding.apply(ids, module.weight, module.padding_idx, copy)


class _Embedding(torch.autograd.Function):
    """Rows of an embedding; the gradient goes into its buffer, without a matrix of zeros for all other rows."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding: int | None, copy: WeightCopy) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(ids)
        ctx.padding, ctx.copy = padding, copy
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None, None]:  # type: ignore[override]
        (ids,) = ctx.saved_tensors
        if ctx.padding is not None:  # its row is not trained
            grad = grad * (ids != ctx.padding)[..., None]
        ctx.copy.collect_rows(ids, grad)
        return None, None, None, None


class _Linear(torch.autograd.Function):
    """x·Wᵀ + b with the copy of W; the gradient of W goes into its buffer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, copy: WeightCopy) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        ctx.copy = copy
        return product(F.linear, x, copy.weight, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        ctx.copy.collect(rows, x.flatten(0, -2))
        grad_x = product(torch.matmul, grad, ctx.copy.weight) if ctx.needs_input_grad[0] else None
        return grad_x, None, rows.sum(0) if ctx.needs_input_grad[2] else None, None


def transposed(x: Tensor, scratch: Scratch) -> Tensor:
    """`xᵀ`; in half precision, for a CPU with tiles (AMX), a contiguous copy that is valid until the next call.

    There a bf16 product with a transposed first factor takes up to three times as long as one with a contiguous one,
    and torch copies it on one core. Other CPUs take as long either way.
    """
    if x.dtype.itemsize != 2 or not has_amx_tiles():
        return x.t()
    n, width = x.shape
    copy = scratch.take("transposed", (width, n), x.dtype)
    # Rows at distances of 2 KiB share cache sets, long rows have a page of memory each.
    strip = SHORT_STRIP if width % 1024 == 0 or width > 8192 else STRIP
    for own, rows in zip(copy.split(strip, 1), x.split(strip), strict=True):
        own.copy_(rows.t())
    return copy


def huge_empty(sizes: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """Uninitialised vectors side by side, on Linux on huge pages: fewer page faults and TLB misses."""
    if not sum(sizes) or not sys.platform.startswith("linux"):
        return [torch.empty(n, dtype=dtype) for n in sizes]
    starts = list(accumulate((math.ceil(n * dtype.itemsize / LINE) * LINE for n in sizes), initial=0))
    # One page more than needed, so that the first vector can start at a page boundary.
    block = mmap.mmap(-1, (math.ceil(starts[-1] / HUGE_PAGE) + 1) * HUGE_PAGE, flags=mmap.MAP_PRIVATE)
    with suppress(OSError):  # a kernel without them
        block.madvise(mmap.MADV_HUGEPAGE)
    first = -ctypes.addressof(ctypes.c_char.from_buffer(block)) % HUGE_PAGE
    return [
        torch.frombuffer(block, dtype=dtype, count=n, offset=first + start) if n else torch.empty(0, dtype=dtype)
        for n, start in zip(sizes, starts, strict=False)
    ]


class _LowRank(torch.autograd.Function):
    """x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ with a frozen W; the update is added within its product, which rounds the sum once."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, bias: Tensor | None, a: Tensor, b: Tensor,
        weight: Tensor, down: WeightCopy, up: WeightCopy, scaling: float,
    ) -> Tensor:  # fmt: skip
        inner = product(torch.mm, x.flatten(0, -2), down.weight.t()).mul_(scaling)
        ctx.save_for_backward(x, inner)
        ctx.weight, ctx.down, ctx.up, ctx.scaling = weight, down, up, scaling
        out = product(F.linear, x, weight, None if bias is None else bias.to(x.dtype))
        product(Tensor.addmm_, out.flatten(0, -2), inner, up.weight.t())
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, inner = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        ctx.up.collect(rows, inner)
        grad_inner = product(torch.mm, rows, ctx.up.weight).mul_(ctx.scaling)
        ctx.down.collect(grad_inner, x.flatten(0, -2))
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = product(torch.mm, rows, ctx.weight)
            grad_x = product(Tensor.addmm_, grad_x, grad_inner, ctx.down.weight).view_as(x)
        return grad_x, None, None, None, None, None, None, None
