"""What acceleration uses of torch that is not documented, each with the reason; `tests/accel/test_compat_torch.py`
names the attribute that a new version of torch lacks."""

import inspect
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def has_bf16_products() -> bool:
    """Whether torch's CPU matrix library (oneDNN) multiplies bf16 on this processor; without it bf16 is very slow."""
    return torch.backends.mkldnn.is_available() and _reported(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")


def has_amx_tiles() -> bool:
    """Whether this processor has matrix tile instructions (Intel's AMX)."""
    return _reported(torch.cpu, "_is_amx_tile_supported")


def has_bf16_vectors() -> bool:
    """Whether this processor has bf16 instructions of AVX-512."""
    return _reported(torch.cpu, "_is_avx512_bf16_supported")


def _reported(module: Any, name: str) -> bool:
    """What a private function says of the processor, since no public one does; False where it is missing."""
    function = getattr(module, name, None)
    return function is not None and bool(function())


def has_packed_products() -> bool:
    """Whether `packed_weight` and `packed_linear` exist on this machine."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return has_bf16_products() and all(hasattr(torch.ops.mkldnn, name) for name in names)


def packed_weight(weight: Tensor, n_rows: int) -> Tensor:
    """A bf16 matrix in the memory order of oneDNN's products, chosen for inputs of `n_rows` rows; others work too.

    Private: used by torch's compiler on CPUs; without it the matrix is reordered in every product.
    """
    return torch.ops.mkldnn._reorder_linear_weight(weight, n_rows)


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """`x` times a packed matrix plus `bias`, then GELU (tanh) if wanted. Private: no other operator takes one."""
    name, form = ("gelu", "tanh") if gelu else ("none", "")
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, name, [], form)


def softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    """The gradient of a softmax over the last axis with output `weights`, given the gradient of its output.

    Private: the fused kernel that autograd calls; public operators take three passes over memory.
    """
    return torch._softmax_backward_data(grad, weights, -1, weights.dtype)


def fused_adamw(
    weights: list[Tensor], gradients: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    steps: list[Tensor], grad_scale: Tensor | None, group: dict,
) -> None:  # fmt: skip
    """AdamW's update of pieces of parameters, in place. Private: `torch.optim.AdamW` updates whole ones only."""
    beta1, beta2 = group["betas"]
    torch._fused_adamw_(
        weights, gradients, exp_avgs, exp_avg_sqs, [], steps,
        lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"],
        amsgrad=False, maximize=False, grad_scale=grad_scale,
    )  # fmt: skip


# Private: the public `copy_`, `add_` and `vector_norm` launch a kernel for each tensor.


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy tensors in one kernel."""
    torch._foreach_copy_(list(targets), list(sources))


def add_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Add tensors in place in one kernel."""
    torch._foreach_add_(list(targets), list(sources))


def norm_of_each(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of each tensor, in one kernel on a GPU."""
    return torch.stack(torch._foreach_norm(list(tensors)))


def borrowed(tensor: Tensor) -> Tensor:
    """A tensor of the same memory that does not keep it. Private: torch's own recorded graphs share theirs so."""
    storage = tensor.untyped_storage()
    same: Any = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), tensor.device, storage.nbytes())
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(same, tensor.storage_offset(), tensor.shape, tensor.stride())


def causal_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_queries: Tensor, cu_keys: Tensor, longest_query: int, longest_key: int,
    window: int | None = None,
) -> Tensor:  # fmt: skip
    """Causal attention of sequences side by side `(N, H, D)`; with fewer queries than keys their ends are aligned.

    Heads of keys may be fewer than those of queries; from torch 2.12 on an argument must say so.
    """
    from torch.nn.attention.varlen import varlen_attn

    n_before = -1 if window is None or window >= longest_key else window - 1  # keys before a query's own; -1 for all
    options: dict[str, Any] = {"window_size": (n_before, 0)}  # a right window of 0 is causal
    if "enable_gqa" in _parameters(varlen_attn):
        options["enable_gqa"] = q.shape[-2] != k.shape[-2]
    out = varlen_attn(q, k, v, cu_queries, cu_keys, longest_query, longest_key, **options)
    assert isinstance(out, Tensor)
    return out


@cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def waits_for_gpu(run: Callable[[], Any]) -> bool:
    """Call a function until something in it waits for the GPU; whether something did.

    `torch.cuda.set_sync_debug_mode` is documented as a prototype and warns of it.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return False


# Private: all that torch has of tensors without values, and of seeing what operations make.


class _NoValues(FakeTensorMode):
    """Also under `torch.compile`; a number that the host reads and no constant is 0, and what it asks is true."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = {}) -> Any:  # noqa: B006
        if func is torch.ops.aten._local_scalar_dense.default and args[0].constant is None:
            return True if args[0].dtype == torch.bool else 0.0
        if func is torch.ops.aten.equal.default:
            return True
        if func is torch.ops.aten._unique2.default:  # as if all values were distinct
            return tuple(torch.empty(len(args[0]), dtype=torch.int64) for _ in range(3))
        if func is torch.ops.aten._grouped_mm.default:  # of experts; torch's rule for its size refuses fp32
            a, b, offsets = args[:3]
            groups = [len(a) if a.ndim == 3 else len(offsets)] if a.ndim == b.ndim else []
            return torch.empty(*groups, a.shape[-2], b.shape[-1], dtype=a.dtype)
        return super().__torch_dispatch__(func, types, args, kwargs)


@contextmanager
def no_values() -> Iterator[None]:
    """Inside, tensors that are made have a size and a dtype and neither memory nor values; others count as such."""
    # Tensors without values cannot be exchanged in a module, and are on no device to leave.
    with _NoValues(allow_non_fake_inputs=True), patch.object(nn.Module, "to", lambda module, *_, **__: module):
        yield


def values() -> AbstractContextManager[Any]:
    """Inside, tensors have values, also within `no_values`."""
    return unset_fake_temporarily()


class LiveTensors(TorchDispatchMode):
    """Counts, inside, the bytes of tensors while they are alive: `now`, and `peak`, the most since it was set."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._storages: dict[int, int] = {}

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def add(self, tensor: Tensor) -> bool:
        """Count a tensor, unless its memory is counted already; whether it was."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return False
        self._storages[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.drop, key)
        return True

    def recording(self) -> AbstractContextManager[Any]:
        """Inside, a graph is recorded."""
        return nullcontext()

    def drop(self, key: int) -> None:
        """No longer count a storage."""
        self.now -= self._storages.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:  # others consist of counted ones
                self.add(tensor)
        return out
