"""CUDA graphs without a GPU: the operations of a step, repeated on the same memory with the host's values of then.

What a replay depends on besides the tensors that are its inputs is fixed: Python's numbers, sizes, branches. While it is
recorded nothing changes, and the memory that a graph made is overwritten by the replay of any other, as in a shared pool.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


class EmulatedGraph(TorchDispatchMode):
    """In place of `torch.cuda.CUDAGraph`; as a context it records."""

    pool: ClassVar[list[EmulatedGraph]] = []

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # memory that is not the graph's, as it was
        self.own: dict[int, Tensor] = {}
        self.n_replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage().data_ptr() for x in _tensors((args, kwargs or {}))}
        values = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | (kwargs or {})
        written = [
            tensor
            for argument in func._schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
            for tensor in _tensors(values.get(argument.name))
        ]
        for tensor in written:
            place = tensor.untyped_storage().data_ptr()
            if place not in self.own and place not in self.before:
                whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                self.before[place] = whole, whole.clone()
        out = func(*args, **(kwargs or {}))
        made = {x.untyped_storage().data_ptr(): x for x in _tensors(out)}
        if written or made.keys() - given:  # others are views
            self.operations.append((func, args, kwargs or {}, out))
        self.own |= {place: tensor for place, tensor in made.items() if place not in given}
        return out

    def end(self) -> None:
        """Restore what recording has changed."""
        for whole, values in self.before.values():
            whole.copy_(values)
        self.before.clear()
        self.pool.append(self)

    @torch.no_grad()
    def replay(self) -> None:
        self.n_replays += 1
        for other in self.pool:
            for tensor in other.own.values() if other is not self else ():
                if tensor.is_floating_point():
                    tensor.detach().fill_(math.nan)
        for func, args, kwargs, out in self.operations:
            for kept, new in zip(_tensors(out), _tensors(func(*args, **kwargs)), strict=True):
                if kept.data_ptr() != new.data_ptr():  # otherwise written in place
                    assert kept.shape == new.shape, f"{func}: the size depends on values"
                    kept.detach().copy_(new)


@contextmanager
def _recording(graph: EmulatedGraph, *_: Any, **__: Any) -> Iterator[None]:
    """A state of random numbers that is read while recording is, in a replay, that of the replay."""
    state, read, write = torch.get_rng_state(), torch.get_rng_state, torch.set_rng_state

    def get_rng_state() -> Tensor:
        graph.operations.append((read, (), {}, found := read()))
        return found

    def set_rng_state(new_state: Tensor) -> None:
        graph.operations.append((write, (new_state,), {}, None))
        write(new_state)

    with (
        patch.object(torch, "get_rng_state", get_rng_state),
        patch.object(torch, "set_rng_state", set_rng_state),
        graph,
    ):
        yield
    torch.set_rng_state(state)
    graph.end()


def never_waits(run: Callable[[], Any]) -> bool:
    """In place of `waits_for_gpu`."""
    run()
    return False


class _Stream:
    def wait_stream(self, other: _Stream) -> None:
        pass


@pytest.fixture
def emulated_cuda(monkeypatch: pytest.MonkeyPatch) -> list[EmulatedGraph]:
    """What recording uses of `torch.cuda`; the graphs that were recorded."""
    pool: ClassVar[list[EmulatedGraph]] = []
    monkeypatch.setattr(EmulatedGraph, "pool", pool)
    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    of_gpu: dict[str, Any] = {"current_stream": _Stream(), "graph_pool_handle": None, "empty_cache": None}
    of_gpu |= {"mem_get_info": (25 * 10**9, 0), "max_memory_allocated": 3 * 10**10, "memory_allocated": 2 * 10**10}
    for name, answer in of_gpu.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    autocast = torch.autocast  # which warns of a GPU that is not there
    of_cuda = lambda device, *args, **kwargs: nullcontext() if device == "cuda" else autocast(device, *args, **kwargs)  # noqa: E731
    monkeypatch.setattr(torch, "autocast", of_cuda)
    for name in ("cuda_graphs", "decode_loop"):
        monkeypatch.setattr(f"instruct_lit.accel.{name}.waits_for_gpu", never_waits)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", EmulatedGraph)
    monkeypatch.setattr(torch.cuda, "graph", _recording)
    return pool
