"""The device of models: a GPU if there is one, otherwise the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from instruct_lit.core.model.causal import CausalLM


def has_gpu() -> bool:
    """Whether torch finds a CUDA device."""
    return torch.cuda.is_available()


def best_device() -> torch.device:
    """The GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if has_gpu() else "cpu")


@contextmanager
def on_device(model: CausalLM, device: torch.device) -> Iterator[None]:
    """Move a model to a device of this type and back afterwards; Lightning moves it to the CPU after every run."""
    before = model.head_weight.device
    if before.type != device.type:
        model.to(device)
    try:
        yield
    finally:
        if before.type != device.type:
            model.to(before)
