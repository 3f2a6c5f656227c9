"""Checks of a training configuration before anything is loaded: constructors, and whether this machine can run it."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from instruct_lit.config.data_builders import source_nodes
from instruct_lit.config.model_builders import check_adapter, shape_of
from instruct_lit.config.satellites import has_satellite
from instruct_lit.config.targets import target_of, without
from instruct_lit.core.model import causal as device
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.errors import ConfigError

WORKERS_PER_PROCESSOR = 8
SHARED_MEMORY = Path("/dev/shm")  # nosec B108: where Linux keeps what processes share
BYTES_PER_WORKER = 1_000_000  # there, at least
MIN_PROCESSES = 8  # that may share a processor, for tests of several processes


def check_targets(config: DictConfig) -> None:
    """Raise ConfigError for the first `_target_` node of a training configuration that could not be built."""
    for key, node in source_nodes(config).items():
        target_of(node.source, f"{key}.source")
    target_of(without(config.optimizer, "weight_decay"), "optimizer")
    if config.optimizer["_target_"] == "torch.optim.Muon":
        raise ConfigError("optimizer._target_=torch.optim.Muon: takes matrices only; optimizer=muon gives it those")
    if config.finder is not None:
        target_of(config.finder, "finder")
    target_of(without(config.trainer, "strategy"), "trainer")
    for part in ("strategy", "profiler"):
        if OmegaConf.is_dict(config.trainer.get(part)):
            target_of(config.trainer[part], f"trainer.{part}")
    for group in ("callbacks", "logger"):
        for name, node in (config[group] or {}).items():
            if node is not None:
                target_of(node, f"{group}.{name}")


def check_machine(config: DictConfig) -> None:
    """Raise ConfigError when adapter, optimizer or step cannot run on this machine, before anything is loaded.

    Warns of a precision in which a processor is many times slower.
    """
    check_adapter(config)
    n_processors = os.cpu_count() or 1
    check_workers(config.data.n_workers, n_processors)
    check_devices(config.trainer.devices, config.trainer.accelerator, max(MIN_PROCESSES, n_processors))
    if config.model.kind != "hf":
        check_memory(shape_of(config), total_memory())
    warn_of_bf16(config.trainer.accelerator, "trainer.precision", config.trainer.precision)
    if config.optimizer["_target_"] == "instruct_lit.accel.adamw_8bit.adamw_8bit":
        from instruct_lit.accel.adamw_8bit import need_bitsandbytes

        need_bitsandbytes()
    wanted = [name for name in ("compile", "cuda_graphs") if config[name]]
    if wanted:
        if not has_satellite("accel"):
            raise ConfigError(f"{wanted[0]}=true: needs the folder instruct_lit/accel; leave it out")
        from instruct_lit.accel.hardware import default_precision

        if config.trainer.accelerator == "cpu" or not device.has_gpu():
            raise ConfigError(f"{wanted[0]}=true: is for a GPU, and this run has none")
        if "cuda_graphs" in wanted and config.trainer.precision is None and default_precision("gpu") == "32-true":
            raise ConfigError("cuda_graphs=true: this GPU does not compute in bf16")
    try_optimizer(config)


def warn_of_bf16(accelerator: str, key: str, wanted: str | None) -> None:
    """Warn when a processor that cannot multiply in bf16 would have to."""
    if not has_satellite("accel"):
        return
    from instruct_lit.accel.compat_torch import has_bf16_products

    on_cpu = accelerator == "cpu" or not device.has_gpu()
    if str(wanted).startswith("bf") and on_cpu and not has_bf16_products():
        warnings.warn(
            f"{key}={wanted}: this processor cannot multiply in bf16, and torch takes ten times as long and more; "
            "left out, the precision is the fastest that it has",
            stacklevel=2,
        )


def check_workers(n_workers: int, n_processors: int) -> None:
    """Raise ConfigError for too many workers, and where the batches that they have ready exceed shared memory."""
    if n_workers > (most := WORKERS_PER_PROCESSOR * n_processors):
        raise ConfigError(
            f"data.n_workers={n_workers}: at most {most} on the {n_processors} processors of this machine"
        )
    n_bytes = n_workers * BYTES_PER_WORKER
    if n_bytes and SHARED_MEMORY.is_dir() and (free := shutil.disk_usage(SHARED_MEMORY).free) < n_bytes:
        raise ConfigError(
            f"data.n_workers={n_workers}: needs {n_bytes / 1e6:.0f} MB of {SHARED_MEMORY}, which has {free / 1e6:.1f} "
            "MB free; use data.n_workers=0, or give it more (docker run --shm-size=1g)"
        )


def check_devices(devices: Any, accelerator: str, n_processors: int) -> None:
    """Raise ConfigError for more processes on the CPU than it has processors; of GPUs Lightning knows the number."""
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not device.has_gpu())
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

    weight_decay = config.optimizer.get("weight_decay", 0.0)
    if isinstance(weight_decay, bool) or not isinstance(weight_decay, int | float) or not 0 <= weight_decay < 2**63:
        raise ConfigError(f"optimizer.weight_decay={weight_decay}: must be a finite number of at least 0")
    make_optimizer, make_scheduler = optimization_of(config)
    make_scheduler(make_optimizer(GPT(GPTConfig(n_vocab=4, context_length=2, d_model=4, n_layers=1, n_heads=1))), 1)
