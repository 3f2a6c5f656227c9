"""A GPU whose tensors lie on the host: torch's rules for devices hold, and CUDA graphs are repeated operations.

A tensor on `cuda:0` (or `mps:0`, which has no float64) is an `OnGPU`. An operation on tensors of two devices fails as on a GPU, an operation that reads
the device from the host fails where waiting is forbidden, and a recorded graph repeats its operations on the same
memory with the host's values of then. Kernels, streams, speed and memory are not pretended.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import patch

import torch
import torch.mps
import torch.nn.attention.varlen  # registers its operations
from lightning.fabric.accelerators.mps import MPSAccelerator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from tests.pretended_gpu import flash

HOST = torch.device("cpu")
aten = torch.ops.aten
# Operations of another name or dtype on a GPU than on the host.
INSTEAD: Mapping[Any, Any] = {
    torch.ops.torch_attn._varlen_attn: flash.forward,
    torch.ops.torch_attn._varlen_attn_backward: flash.backward,
    aten.histc: lambda x, *a, **k: aten.histc(x.float(), *a, **k).to(x.dtype),
    aten._fused_sdp_choice: lambda *_, **__: 0,  # of torch's own attention the form that is written out
    aten.is_pinned: lambda *_, **__: False,
    aten.pin_memory: lambda x, *_: x,
    aten._pin_memory: lambda x, *_: x,
}
COPIES = (aten.copy_, aten._to_copy, aten.to, aten.set_)  # between devices
INDEXED = (aten.index, aten._unsafe_index, aten.index_put, aten.index_put_, aten._index_put_impl_)
READS = (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2, aten.is_nonzero)


class OnGPU(Tensor):
    """A tensor whose device is the GPU and whose values are those of `host`."""

    place: ClassVar[torch.device] = torch.device("cuda", 0)
    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> OnGPU:
        return Tensor._make_wrapper_subclass(
            cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
            layout=host.layout, device=cls.place,
        )  # fmt: skip

    def __init__(self, host: Tensor) -> None:
        self.host = host

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGPU({self.host})"

    def __format__(self, spec: str) -> str:
        return format(self.host, spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            with torch.no_grad():
                memo[id(self)] = OnGPU(self.host.clone()).requires_grad_(self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:  # files are read on the host
        return self.host.detach().clone().__reduce_ex__(protocol)

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.host.untyped_storage()

    def tolist(self) -> Any:
        return self.host.tolist()


class Waits:
    """Whether an operation that waits for the device is an error, as with torch.cuda.set_sync_debug_mode."""

    forbidden: ClassVar[bool] = False

    @classmethod
    def get(cls) -> int:
        return 2 if cls.forbidden else 0

    @classmethod
    def set(cls, mode: int | str) -> None:
        cls.forbidden = mode in (2, "error")

    @classmethod
    def check(cls, func: Any, args: Any, to: str | None) -> None:
        name = func.overloadpacket
        reads = name in READS or to == "cpu" or (name is aten.copy_ and not isinstance(args[0], OnGPU))
        by_truth = name in INDEXED[:2] and any(x is not None and x.dtype == torch.bool for x in args[1])
        if cls.forbidden and (reads or by_truth):
            raise RuntimeError(f"called a synchronizing CUDA operation: {func}")


class Graph:
    """In place of `torch.cuda.CUDAGraph`. While it is recorded nothing changes but memory of its own."""

    recording: ClassVar[list[Graph]] = []
    n_recorded: ClassVar[int] = 0
    n_replayed: ClassVar[int] = 0

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self._own: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def compute(self, func: Any, function: Any, args: Any, kwargs: Any) -> Any:
        """Record an operation on tensors of the host."""
        named = {**dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)), **kwargs}
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in _tensors(named.get(argument.name)):
                    storage = tensor.untyped_storage()
                    if not {storage.data_ptr()} & (self._own | self._before.keys()):
                        whole = torch.empty(0, dtype=torch.uint8).set_(storage)
                        self._before[storage.data_ptr()] = whole, whole.clone()
        out = function(*args, **kwargs)
        self._own |= _places(out) - _places((args, kwargs))
        self.operations.append((function, args, kwargs, out))
        return out

    def replay(self) -> None:
        Graph.n_replayed += 1
        with torch.inference_mode(), _disable_current_modes():
            for function, args, kwargs, out in self.operations:
                given, new = _places((args, kwargs)), function(*args, **kwargs)
                for old, tensor in zip(_tensors(out), _tensors(new), strict=True):
                    if old.untyped_storage().data_ptr() not in given:  # others are views, or were written in place
                        old.copy_(tensor)

    @classmethod
    @contextmanager
    def record(cls, graph: Graph, *_: Any, **__: Any) -> Iterator[None]:
        """In place of `torch.cuda.graph`."""
        before, Waits.forbidden = Waits.forbidden, True
        cls.n_recorded += 1
        cls.recording.append(graph)
        try:
            yield
        finally:
            cls.recording.pop()
            Waits.forbidden = before
            for whole, old in graph._before.values():
                whole.copy_(old)


class Stream:
    """In place of `torch.cuda.Stream`: everything happens in order."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def wait_stream(self, other: Any) -> None: ...
    def wait_event(self, event: Any) -> None: ...
    def synchronize(self) -> None: ...


def compute(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operation, on the device where it belongs. Raises: RuntimeError for tensors of two devices."""
    name, leaves = func.overloadpacket, _tensors((args, kwargs))
    on_gpu = [x for x in leaves if isinstance(x, OnGPU)]
    devices = [x for x in (*args, kwargs.get("device")) if isinstance(x, torch.device)]
    to = devices[0].type if devices else args[1].device.type if name is aten.to and _tensors(args[1:2]) else None
    if on_gpu and name not in COPIES:
        _check_devices(func, args, leaves)
    if on_gpu:
        Waits.check(func, args, to)
    given, named = tree_map(_on_host, args), {k: _on_host(v) for k, v in tree_map(_on_host, kwargs).items()}
    if named.get("pin_memory"):
        named["pin_memory"] = False
    function = INSTEAD.get(name, func)
    out = Graph.recording[-1].compute(func, function, given, named) if Graph.recording else function(*given, **named)
    is_on_gpu = bool(on_gpu) if to is None else to == OnGPU.place.type
    if name is aten.copy_:
        is_on_gpu = isinstance(args[0], OnGPU)
    if not is_on_gpu:
        return out
    if OnGPU.place.type == "mps" and any(x.dtype in (torch.float64, torch.complex128) for x in _tensors(out)):
        raise TypeError(f"Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it: {func}")
    # In inference mode too a view of another tensor is one.
    views = func.is_view and on_gpu and not on_gpu[0].is_inference()
    with torch.inference_mode(torch.is_inference_mode_enabled() and not views):
        out = tree_map(lambda x: OnGPU(x) if isinstance(x, Tensor) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if on_gpu and name not in COPIES[1:3] else out


def _check_devices(func: Any, args: Any, leaves: list[Tensor]) -> None:
    indices = _tensors(args[1]) if func.overloadpacket in INDEXED and isinstance(args[0], OnGPU) else []
    for x in leaves:
        if not isinstance(x, OnGPU) and x.ndim > 0 and not any(x is index for index in indices):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found {OnGPU.place} and cpu: {func}"
            )


def _on_host(x: Any) -> Any:
    return x.host if isinstance(x, OnGPU) else HOST if isinstance(x, torch.device) else x


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def _places(values: Any) -> set[int]:
    return {x.untyped_storage().data_ptr() for x in _tensors(values)}


def _attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """torch's attention in the form that is written out, which Apple's build chooses in a kernel of its own."""
    return aten._scaled_dot_product_attention_math(
        q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


@contextmanager
def pretended_gpu(kind: str) -> Iterator[None]:
    """Inside, and in threads that start inside, torch has one GPU; `hooks.load` was called before torch's import."""
    OnGPU.place = torch.device(kind, 0)
    plain, after = threading.Thread.run, torch.__future__.get_swap_module_params_on_conversion()

    def run(thread: threading.Thread) -> None:
        with Mode():
            plain(thread)

    properties = SimpleNamespace(name="pretended", major=9, minor=0, total_memory=2**36, multi_processor_count=1)
    of_mps = {
        "is_available": lambda: True, "device_count": lambda: 1, "synchronize": lambda: None,
        "manual_seed": lambda _: None, "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state), "empty_cache": lambda: None,
        **{f"{which}_memory": lambda: 0 for which in ("current_allocated", "driver_allocated", "recommended_max")},
    }  # fmt: skip
    of_cuda = {
        "_lazy_init": lambda: None, "is_available": lambda: True, "is_initialized": lambda: True,
        "device_count": lambda: 1, "current_device": lambda: 0, "set_device": lambda *_: None,
        "is_bf16_supported": lambda *_, **__: True, "get_device_capability": lambda *_: (9, 0),
        "get_device_name": lambda *_: properties.name, "get_device_properties": lambda *_: properties,
        "empty_cache": lambda: None, "synchronize": lambda *_: None, "reset_peak_memory_stats": lambda *_: None,
        "mem_get_info": lambda *_: (2**36, 2**36), "memory_stats": lambda *_: {},
        **{f"{most}memory_{kind}": lambda *_: 0 for most in ("", "max_") for kind in ("allocated", "reserved")},
        "manual_seed": lambda *_: None, "manual_seed_all": lambda *_: None,
        "get_rng_state": lambda *_: torch.get_rng_state(), "get_rng_state_all": lambda: [torch.get_rng_state()],
        "set_rng_state": lambda state, *_: torch.set_rng_state(state), "set_rng_state_all": lambda _: None,
        "get_sync_debug_mode": Waits.get, "set_sync_debug_mode": Waits.set,
        "Stream": Stream, "current_stream": Stream, "set_stream": lambda _: None, "stream": lambda _: ExitStack(),
        "CUDAGraph": Graph, "graph": Graph.record, "graph_pool_handle": lambda: (0, 1),
        "is_current_stream_capturing": lambda: bool(Graph.recording),
    }  # fmt: skip
    lifts = torch._C._only_lift_cpu_tensors()
    with ExitStack() as stack:
        for name, value in (of_cuda if kind == "cuda" else of_mps).items():
            stack.enter_context(patch.object(torch.cuda if kind == "cuda" else torch.mps, name, value))
        if kind == "mps":
            stack.enter_context(patch.object(torch.backends.mps, "is_available", lambda: True))
            stack.enter_context(patch.object(MPSAccelerator, "is_available", lambda: True))
            stack.enter_context(patch.object(torch.nn.functional, "scaled_dot_product_attention", _attention))
        stack.enter_context(patch.object(torch.accelerator, "current_accelerator", lambda *_, **__: OnGPU.place))
        stack.enter_context(patch.object(torch.accelerator, "synchronize", lambda *_: None))
        stack.enter_context(patch.object(threading.Thread, "run", run))
        torch.__future__.set_swap_module_params_on_conversion(True)  # tied parameters stay tied
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, after)
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        stack.enter_context(Mode())
        yield
