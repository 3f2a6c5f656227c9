"""Values that no machine, or not this one, has the memory or the processors for; and a trial of the optimizer."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from instruct_lit.config.model_builders import shape_of
from instruct_lit.errors import ConfigError

if TYPE_CHECKING:
    from instruct_lit.core.model.gpt import GPTConfig

WORKERS_PER_PROCESSOR = 8
SHARED_MEMORY = Path("/dev/shm")  # nosec B108: where Linux keeps what processes share
BYTES_PER_WORKER = 1_000_000  # there, at least
MIN_PROCESSES = 8  # that may share a processor, for tests of several processes


def check_resources(config: DictConfig) -> None:
    """Raise ConfigError for more processes or weights than this machine can hold."""
    n_processors = os.cpu_count() or 1
    n_workers, most = config.data.n_workers, WORKERS_PER_PROCESSOR * n_processors
    if n_workers > most:
        raise ConfigError(
            f"data.n_workers={n_workers}: at most {most} on the {n_processors} processors of this machine"
        )
    check_shared_memory(n_workers)
    check_devices(config.trainer.devices, config.trainer.accelerator, max(MIN_PROCESSES, n_processors))
    if config.model.kind != "hf":
        check_memory(shape_of(config), total_memory())


def check_shared_memory(n_workers: int) -> None:
    """Raise ConfigError where the batches that workers have ready cannot fit in shared memory."""
    n_bytes = n_workers * BYTES_PER_WORKER
    if n_bytes and SHARED_MEMORY.is_dir() and (free := shutil.disk_usage(SHARED_MEMORY).free) < n_bytes:
        raise ConfigError(
            f"data.n_workers={n_workers}: needs {n_bytes / 1e6:.0f} MB of {SHARED_MEMORY}, which has {free / 1e6:.1f} "
            "MB free; use data.n_workers=0, or give it more (docker run --shm-size=1g)"
        )


def check_devices(devices: Any, accelerator: str, n_processors: int) -> None:
    """Raise ConfigError for more processes on the CPU than it has processors; of GPUs Lightning knows the number."""
    from instruct_lit.core.model.device import has_gpu

    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not has_gpu())
    n = int(devices) if isinstance(devices, int) or str(devices).isdecimal() else 1
    if on_cpu and n > n_processors:
        raise ConfigError(f"trainer.devices={devices}: at most {n_processors} processes on the CPU of this machine")


def check_memory(shape: GPTConfig, memory_bytes: int | None) -> None:
    """Raise ConfigError for a GPT-2 whose weights alone need more than the memory of the machine."""
    blocks = shape.n_layers * (12 * shape.d_model**2 + 13 * shape.d_model)
    n = blocks + (shape.n_vocab + shape.context_length + 2) * shape.d_model
    if memory_bytes is not None and 4 * n > memory_bytes:
        raise ConfigError(
            f"model.n_layers={shape.n_layers}, model.d_model={shape.d_model}, model.context_length="
            f"{shape.context_length}: {4 * n / 1e9:.1f} GB of weights; this machine has {memory_bytes / 1e9:.1f} GB"
        )


def total_memory() -> int | None:
    """Bytes of memory of this machine; None on Windows."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None


def try_optimizer(config: DictConfig) -> None:
    """Make the optimizer and the schedule of a tiny model, so that impossible arguments are refused before any work."""
    from instruct_lit.config.run_builders import optimization_of
    from instruct_lit.core.model.gpt import GPT, GPTConfig

    weight_decay = config.optimizer.get("weight_decay", 0.0)
    if isinstance(weight_decay, bool) or not isinstance(weight_decay, int | float) or not 0 <= weight_decay < 2**63:
        raise ConfigError(f"optimizer.weight_decay={weight_decay}: must be a finite number of at least 0")
    make_optimizer, make_scheduler = optimization_of(config)
    make_scheduler(make_optimizer(GPT(GPTConfig(n_vocab=4, context_length=2, d_model=4, n_layers=1, n_heads=1))), 1)
