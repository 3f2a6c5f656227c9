"""The states of all random generators of a process."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from instruct_lit.errors import CheckpointError


def random_state() -> dict[str, Any]:
    """The states of all random generators of this process, as tensors and plain numbers."""
    _, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": [version, torch.tensor(internal, dtype=torch.int64), gauss_next],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned. Raises CheckpointError for the state of another Python."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    try:
        random.setstate((version, tuple(internal.tolist()), gauss_next))
    except ValueError as error:
        raise CheckpointError(
            f"ckpt_path: random state of another Python ({error}); use the Python of before"
        ) from error
