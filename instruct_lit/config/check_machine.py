"""Checks of a training configuration before anything is loaded: constructors, and whether this machine can run it."""

import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from instruct_lit.config.check_data import is_share
from instruct_lit.config.data_builders import source_nodes
from instruct_lit.config.model_builders import shape_of
from instruct_lit.config.satellites import has_satellite
from instruct_lit.config.schema.options import Relation, check
from instruct_lit.config.targets import target_of, without
from instruct_lit.core.model import causal as device
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.errors import ConfigError
from instruct_lit.optional_imports import missing

WORKERS_PER_PROCESSOR = 8
SHARED_MEMORY = Path("/dev/shm")  # nosec B108: where Linux keeps what processes share
BYTES_PER_WORKER = 1_000_000  # there, at least
MIN_PROCESSES = 8  # that may share a processor, for tests of several processes
# Packages of loggers in the extra loggers, by class.
LOGGERS = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow", "CometLogger": "comet_ml", "Comet": "comet_ml",
           "Trackio": "trackio"}  # fmt: skip


def check_targets(config: DictConfig) -> None:
    """Raise ConfigError for the first `_target_` node of a training configuration that could not be built."""
    nodes = {f"{key}.source": node.source for key, node in source_nodes(config).items()}
    nodes |= {"optimizer": without(config.optimizer, "weight_decay"), "finder": config.finder}
    nodes["trainer"] = without(config.trainer, "strategy")
    parts = {f"trainer.{part}": config.trainer.get(part) for part in ("strategy", "profiler")}
    nodes |= {key: node for key, node in parts.items() if OmegaConf.is_dict(node)}
    for group in ("callbacks", "logger"):
        nodes |= {f"{group}.{name}": node for name, node in (config[group] or {}).items()}
    for key, node in nodes.items():
        if node is not None:
            target_of(node, key)
    if config.optimizer["_target_"] == "torch.optim.Muon":
        raise ConfigError("optimizer._target_=torch.optim.Muon: takes matrices only; optimizer=muon gives it those")


def check_machine(config: DictConfig) -> None:
    """Raise ConfigError when adapter, optimizer or step cannot run on this machine, before anything is loaded.

    The optimizer and the schedule of a tiny model are made, so that impossible arguments are refused. Warns of a
    precision in which a processor is many times slower.
    """
    from instruct_lit.config.run_builders import optimization_of

    if config.adapter.kind != "none":
        from instruct_lit.hf.adapters import check_peft, check_qlora

        if config.adapter.kind == "qlora" and (why_not := check_qlora()) is not None:
            raise ConfigError(f"adapter=qlora: {why_not}")
        check_peft()
    check(config, _relations(config))
    warn_of_bf16(config.trainer.accelerator, "trainer.precision", config.trainer.precision)
    if config.optimizer["_target_"] == "instruct_lit.accel.adamw_8bit.adamw_8bit":
        from instruct_lit.accel.adamw_8bit import need_bitsandbytes

        need_bitsandbytes()
    make_optimizer, make_scheduler = optimization_of(config)
    make_scheduler(make_optimizer(GPT(GPTConfig(n_vocab=4, context_length=2, d_model=4, n_layers=1, n_heads=1))), 1)


def _relations(config: DictConfig) -> Iterator[Relation]:
    n_processors, trainer = os.cpu_count() or 1, config.trainer
    yield from worker_relations(config.data.n_workers, n_processors)
    gpu = device.best_device().type
    on_cpu = trainer.accelerator == "cpu" or gpu not in ("cuda", "mps")  # Lightning trains on no others
    here = ["auto", "cpu", *(("gpu", gpu) if gpu in ("cuda", "mps") else ())]
    allowed = f"this machine has no such device; allowed are {', '.join(here)}"
    yield trainer.accelerator not in here, "trainer.accelerator", allowed
    devices, most = str(trainer.devices), max(MIN_PROCESSES, n_processors)  # of GPUs Lightning knows the number
    too_many = on_cpu and trainer.accelerator in ("auto", "cpu") and devices.isdecimal() and int(devices) > most
    yield too_many, "trainer.devices", f"at most {most} processes on the CPU of this machine"
    if config.model.kind != "hf" and hasattr(os, "sysconf"):  # not on Windows
        shape, memory_bytes = shape_of(config), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        blocks = shape.n_layers * (12 * shape.d_model**2 + 13 * shape.d_model)
        n_bytes = 4 * (blocks + (shape.n_vocab + shape.context_length + 2) * shape.d_model)
        key = ", ".join(f"model.{name}={getattr(shape, name)}" for name in ("n_layers", "d_model", "context_length"))
        reason = f"{n_bytes / 1e9:.1f} GB of weights; this machine has {memory_bytes / 1e9:.1f} GB"
        yield n_bytes > memory_bytes, key, reason
    for key in ("compile", "cuda_graphs"):
        if config[key] and not has_satellite("accel"):
            yield True, key, "needs the folder instruct_lit/accel; leave it out"
        elif config[key]:
            from instruct_lit.accel.hardware import default_precision

            yield on_cpu or gpu == "mps", key, "is for a CUDA GPU, and this run has none"
            no_bf16 = not on_cpu and trainer.precision is None and default_precision("gpu") == "32-true"
            yield key == "cuda_graphs" and no_bf16, key, "this GPU does not compute in bf16"
    if config.model.liger:
        yield on_cpu or gpu == "mps", "model.liger", "is for a CUDA GPU, and this run has none"
        yield missing("liger_kernel", "model.liger=true", "liger")
    for name, node in (config.logger or {}).items():
        package = LOGGERS.get(str(node["_target_"]).rpartition(".")[2]) if node is not None else None
        yield package and missing(package, f"logger.{name}", "loggers")
    decay = config.optimizer.get("weight_decay", 0.0)
    valid = is_share(decay) and decay < 2**63
    yield not valid, f"optimizer.weight_decay={decay}", "must be a finite number of at least 0"


def worker_relations(n_workers: int, n_processors: int) -> Iterator[Relation]:
    """Too many workers, and those whose batches exceed shared memory."""
    key, most = f"data.n_workers={n_workers}", WORKERS_PER_PROCESSOR * n_processors
    yield n_workers > most, key, f"at most {most} on the {n_processors} processors of this machine"
    n_bytes = n_workers * BYTES_PER_WORKER
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else n_bytes
    reason = (
        f"needs {n_bytes / 1e6:.0f} MB of {SHARED_MEMORY}, which has {free / 1e6:.1f} MB free; use data.n_workers=0, "
        "or give it more (docker run --shm-size=1g)"
    )
    yield n_workers <= most and free < n_bytes, key, reason


def warn_of_bf16(accelerator: str, key: str, wanted: str | None) -> None:
    """Warn when a processor that cannot multiply in bf16 would have to."""
    if not has_satellite("accel"):
        return
    from instruct_lit.accel.compat_torch import has_bf16_products

    on_cpu = accelerator == "cpu" or device.best_device().type == "cpu"
    if str(wanted).startswith("bf") and on_cpu and not has_bf16_products():
        warnings.warn(
            f"{key}={wanted}: this processor cannot multiply in bf16, and torch takes ten times as long and more; "
            "left out, the precision is the fastest that it has",
            stacklevel=2,
        )
