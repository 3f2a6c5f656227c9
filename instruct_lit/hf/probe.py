"""What an opened model is measured with: an attention layout that watches, and comparisons."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from instruct_lit.core.model.attention import PackedDocuments
from instruct_lit.errors import ConfigError


class NotSupportedError(Exception):
    """An attention other than softmax(q·kᵀ/√D)·v over what a layout lets a query see."""


_NOT_SUPPORTED = {  # arguments of an attention function
    "softcap": "soft-caps its attention scores", "s_aux": "adds sinks to its attention scores",
    "sinks": "adds sinks to its attention scores", "position_bias": "adds a bias to its attention scores",
    "indices": "attends to tokens that it selects", "block_indices": "attends to tokens that it selects",
}  # fmt: skip


def check_supported(options: Mapping[str, Any]) -> None:
    """Raise NotSupportedError for arguments of an attention function with which it computes something else."""
    for name, what in _NOT_SUPPORTED.items():
        if options.get(name) is not None:
            raise NotSupportedError(f"it {what}")


def check_causal(architecture: str, logits: Tensor, beginnings: tuple[Tensor, Tensor], tolerance: float) -> None:
    """Raise ConfigError for logits that are no numbers, and for states of one text that depend on what follows it."""
    if not logits.isfinite().all():
        raise ConfigError(
            f"model: {architecture} gives NaN or infinite logits; its weights are damaged, or too large for their "
            "precision"
        )
    if difference(*beginnings) > tolerance:
        raise ConfigError(
            f"model: {architecture} is not causal, since states of its tokens depend on later ones; choose another "
            "model"
        )


class Spy(PackedDocuments):
    """A packed layout that records the arguments of the attention function."""

    n_calls = 0
    attention: Any = None  # the module of the last layer

    def __init__(self, lengths: Sequence[int], prefix_length: int) -> None:
        super().__init__(lengths, prefix_length)
        self.kv_heads: dict[int, tuple[int, int]] = {}  # of each layer, and their width

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float, window: int | None = None) -> Tensor:
        self.kv_heads[layer] = k.shape[-2], k.shape[-1]
        self.n_calls += 1
        return super().attend(layer, q, k, v, dropout, window)


def window_of(hf: torch.nn.Module) -> float:
    """The number of last tokens that a layer with sliding-window attention sees; inf where there is no such layer."""
    return min((place.sliding_window for place in _with_windows(hf)), default=math.inf)


@contextmanager
def short_windows(hf: torch.nn.Module, window: int) -> Iterator[None]:
    """Inside, layers with sliding-window attention see the last `window` tokens."""
    before = [(place, place.sliding_window) for place in _with_windows(hf)]
    try:
        for place, _ in before:
            place.sliding_window = window
        yield
    finally:
        for place, size in before:
            place.sliding_window = size


def _with_windows(hf: torch.nn.Module) -> list[Any]:
    """What has the size of a window: masks are made by configurations, kernels are called by modules."""
    configs = {id(c): c for m in hf.modules() if (c := getattr(m, "config", None)) is not None}
    return [p for p in (*hf.modules(), *configs.values()) if type(getattr(p, "sliding_window", None)) is int]


def difference(a: Tensor, b: Tensor) -> float:
    """The relative difference of two tensors."""
    return float((a.float() - b.float()).norm() / b.float().norm())
