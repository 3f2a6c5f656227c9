"""What acceleration uses of torch that is not documented, each with the reason; `tests/accel/test_compat_torch.py`
names the attribute that a new version of torch lacks."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

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


def fused_adamw_piece(
    weight: Tensor, gradient: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor, grad_scale: Tensor | None,
    group: dict,
) -> None:  # fmt: skip
    """AdamW's update of a piece of a parameter, in place.

    Private: `torch._fused_adamw_`, the kernel of `torch.optim.AdamW`, which updates whole parameters only.
    """
    beta1, beta2 = group["betas"]
    torch._fused_adamw_(
        [weight], [gradient], [exp_avg], [exp_avg_sq], [], [step],
        lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"],
        amsgrad=False, maximize=False, grad_scale=grad_scale,
    )  # fmt: skip


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy tensors in one kernel.

    Private: `torch._foreach_copy_`; the public `copy_` launches a kernel for each.
    """
    torch._foreach_copy_(list(targets), list(sources))


def add_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Add tensors in place in one kernel.

    Private: `torch._foreach_add_`; the public `add_` launches a kernel for each.
    """
    torch._foreach_add_(list(targets), list(sources))


def norm_of_each(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of each tensor, in one kernel on a GPU.

    Private: `torch._foreach_norm`; the public `vector_norm` launches a kernel for each.
    """
    return torch.stack(torch._foreach_norm(list(tensors)))


def has_bf16_vectors() -> bool:
    """Whether this processor has bf16 instructions of AVX-512.

    Private: `torch.cpu._is_avx512_bf16_supported`, since no public function reports it. Without it: False.
    """
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return known is not None and bool(known())


def causal_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_queries: Tensor, cu_keys: Tensor, longest_query: int, longest_key: int
) -> Tensor:
    """Causal attention of sequences side by side `(N, H, D)`; with fewer queries than keys their ends are aligned.

    torch 2.11 takes fewer heads of keys than of queries without being asked; from 2.12 on it must be asked.
    """
    from torch.nn.attention.varlen import varlen_attn

    grouped: dict[str, Any] = (
        {"enable_gqa": q.shape[-2] != k.shape[-2]} if "enable_gqa" in _parameters(varlen_attn) else {}
    )
    # A right window of 0 is causal.
    out = varlen_attn(q, k, v, cu_queries, cu_keys, longest_query, longest_key, window_size=(-1, 0), **grouped)
    assert isinstance(out, Tensor)
    return out


@cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


@contextmanager
def forbidden_waits() -> Iterator[None]:
    """Raise RuntimeError where something inside waits for the GPU.

    `torch.cuda.set_sync_debug_mode` is documented as a prototype and warns of it.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
