"""Where models compute: a GPU where there is one, otherwise the processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from instruct_lit.core.model.causal import CausalLM


def has_gpu() -> bool:
    """Whether torch finds a CUDA device."""
    return torch.cuda.is_available()


def best_device() -> torch.device:
    """The GPU, or the processor where there is none."""
    return torch.device("cuda" if has_gpu() else "cpu")


def multiplies_in_bf16() -> bool:
    """Whether torch's matrix library has bf16 products for this processor; otherwise torch counts number by number."""
    known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return known is not None and torch.backends.mkldnn.is_available() and known()


def multiplies_in_tiles() -> bool:
    """Whether this processor has a unit for whole tiles of matrices (Intel's AMX)."""
    known = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return known is not None and bool(known())


@contextmanager
def on_device(model: CausalLM, device: torch.device) -> Iterator[None]:
    """Let a model be on a device of this type for what is inside; Lightning takes it from the GPU after every run."""
    before = model.head_weight.device
    if before.type != device.type:
        model.to(device)
    try:
        yield
    finally:
        if before.type != device.type:
            model.to(before)
