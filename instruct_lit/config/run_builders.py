"""The parts of a training run from a configuration: trainer, optimizer, step, and the `Run` itself."""

import inspect
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor, ProgressBar
from lightning.pytorch.profilers import AdvancedProfiler, SimpleProfiler
from omegaconf import DictConfig, OmegaConf

from instruct_lit.config import model_builders as build_parts
from instruct_lit.config.check_machine import check_machine, check_targets
from instruct_lit.config.check_training import wants_graphs
from instruct_lit.config.compose import output_dir
from instruct_lit.config.data_builders import data_of
from instruct_lit.config.run_hooks import hooks_of
from instruct_lit.config.satellites import has_satellite
from instruct_lit.config.targets import arguments_for, build, plain, target_of, without
from instruct_lit.core.bundle import save_bundle
from instruct_lit.core.data.datamodule import InstructionData
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import Tokenizer
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.pretrained import DTYPES
from instruct_lit.core.training.loss import StepAccelerator
from instruct_lit.core.training.module import InstructionTuner
from instruct_lit.core.training.optimizer import parameter_groups, schedule
from instruct_lit.core.training.run import Run, RunSettings
from instruct_lit.core.training.sharding import Sharding
from instruct_lit.errors import ConfigError

DEFAULTS_OF_SATELLITES = {  # default callbacks that are left out in the core alone
    "instruct_lit.reports.sample_answers.SampleAnswers": "reports",
    "instruct_lit.resume.last_checkpoint.LastCheckpoint": "resume",
}
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}  # they write fit-profile.txt, …
# The core's constructors that a satellite has in a faster form with the same numbers.
ACCELERATED = {"instruct_lit.core.training.optimizer.adamw": "instruct_lit.accel.adamw.adamw"}


def run_of(config: DictConfig) -> Run:
    """The training run of a checked configuration, in Hydra's output folder."""
    for key, node in (config.callbacks or {}).items():
        satellite = DEFAULTS_OF_SATELLITES.get(node.get("_target_")) if node is not None else None
        if satellite and not has_satellite(satellite):
            config.callbacks[key] = None
    for node in (config.logger or {}).values():
        if node is not None and not has_satellite("reports"):
            node["_target_"] = "lightning.pytorch.loggers.TensorBoardLogger"  # the one of the default
    check_targets(config)
    check_machine(config)
    if has_satellite("accel"):
        from instruct_lit.accel.hardware import keep_freed_memory

        keep_freed_memory()
    best = OmegaConf.select(config, "callbacks.best_checkpoint") or {}
    settings = RunSettings(
        output_dir(),
        **arguments_for(RunSettings, config),
        monitor=best.get("monitor", "val/loss"),
        mode=best.get("mode", "min"),
        sampling=build_parts.sampling_of(config),
        data_facts={
            "name": config.data.name,
            "licence": config.data.licence,
            **({"repo": repo} if (repo := OmegaConf.select(config, "data.source.repo")) else {}),
        },
    )
    return Run(ConfiguredParts(config), settings, hooks_of(config))


class ConfiguredParts:
    """Builds the objects of a run as a configuration describes them."""

    def __init__(self, config: DictConfig) -> None:
        self.config, self.sharding = config, sharding()
        self.trainer, self.tuner = partial(trainer_of, config), partial(tuner_of, config)
        self.language = partial(build_parts.language_of, config)
        self.adapter: Any = None
        self._model: Any = None

    def model(self) -> CausalLM:
        self._model = build_parts.model_of(self.config)
        return self._model

    def data(self, template: Template, tokenizer: Tokenizer, context_length: int) -> InstructionData:
        build_parts.check_vocabulary(self._model, tokenizer, template)
        return data_of(self.config, template, tokenizer, context_length, model=self._model)

    def adapt(self, model: CausalLM) -> None:
        self.adapter = build_parts.adapt(self.config, model)

    def engine(self, model: CausalLM, tokenizer: Tokenizer) -> Engine:
        return Engine(model, tokenizer, **build_parts.engine_options(self.config))

    def save_bundle(self, run: Run) -> None:
        """Write the bundle, with the adapter merged or apart as `adapter.merge` says."""
        dtype, write_adapter = DTYPES.get(self.config.bundle_dtype), None
        if self.adapter is not None and self.config.adapter.merge:
            self.adapter.merge(dtype)
        elif self.adapter is not None:
            write_adapter = partial(self.adapter.save, base=build_parts.base_of(self.config))
        about = {**run.about, "metrics": run.metrics, "base": build_parts.base_facts(self.config)}
        folder, sampling = run.run_dir / "bundle", asdict(run.settings.sampling)
        save_bundle(folder, run.model, run.tokenizer, run.template, sampling, about, write_adapter, dtype)


def tuner_of(config: DictConfig, model: CausalLM) -> InstructionTuner:
    """The LightningModule of a model."""
    step = StepAccelerator()
    if has_satellite("accel"):
        from instruct_lit.accel.step import AcceleratedStep

        step = AcceleratedStep(config.compile, wants_graphs(config))
    step.dft = config.loss == "dft"
    return InstructionTuner(model, *optimization_of(config), config.neftune_alpha, step, sharding())


def sharding() -> Sharding:
    """Where weights and checkpoints are: also in shards if `distributed` is installed."""
    if not has_satellite("distributed"):
        return Sharding()
    from instruct_lit.distributed.shards import Shards

    return Shards()


def optimization_of(config: DictConfig) -> tuple[Any, Any]:
    """Functions that make the optimizer of a model, and the scheduler of an optimizer.

    A constructor whose first argument is `model` makes its own parameter groups; any other receives ours.
    """
    node, weight_decay = without(config.optimizer, "weight_decay"), config.optimizer.get("weight_decay", 0.0)
    if has_satellite("accel"):
        node["_target_"] = ACCELERATED.get(node["_target_"], node["_target_"])

    def make_optimizer(model: Any) -> Any:
        if next(iter(inspect.signature(target_of(node, "optimizer")).parameters)) == "model":
            return build(config.optimizer, "optimizer", model)
        return build(node, "optimizer", parameter_groups(model.named_parameters(), weight_decay))

    def make_scheduler(optimizer: Any, n_steps: int) -> Any:
        return schedule(optimizer, n_steps, **plain(config.scheduler))

    return make_optimizer, make_scheduler


def trainer_of(config: DictConfig, callbacks: Sequence[Callback]) -> Trainer:
    """The Lightning trainer with `callbacks`, then the configured ones, and the configured loggers."""
    # Lightning's hints are for its own users; its warnings stay.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.*", ".*does not have many workers.*", ".*Checkpoint directory .* exists.*",
        ".*not supported by the model summary.*", ".*smaller than the logging interval.*",
        ".*sync_dist=True.*",  # what is logged is summed over the processes
        ".*WeightAveraging callback with a model that overrides.*",  # configure_model does nothing without shards
    ):  # fmt: skip
        warnings.filterwarnings("ignore", message=message)
    configured, loggers = (
        [build(node, f"{group}.{name}") for name, node in (config[group] or {}).items() if node is not None]
        for group in ("callbacks", "logger")
    )
    node = plain(config.trainer)
    absent = {  # what the loggers and the arguments of the trainer leave out
        LearningRateMonitor: not loggers,  # refuses to run without one
        Checkpoint: node["enable_checkpointing"] is False,
        ProgressBar: node["enable_progress_bar"] is False,
    }
    unwanted = tuple(kind for kind, is_absent in absent.items() if is_absent)
    has_bar = any(isinstance(callback, ProgressBar) for callback in configured)
    bars = [] if has_bar else _progress_of(callbacks)
    both = [callback for callback in (*callbacks, *bars, *configured) if not isinstance(callback, unwanted)]
    if node["precision"] is None:
        node["precision"] = "32-true"
        if has_satellite("accel"):
            from instruct_lit.accel.hardware import default_precision

            node["precision"] = default_precision(node["accelerator"])
    for part in ("strategy", "profiler"):
        if isinstance(node.get(part), dict):
            node[part] = build(node[part], f"trainer.{part}")
    if node["profiler"] in PROFILERS:
        node["profiler"] = PROFILERS[node["profiler"]](dirpath=node["default_root_dir"], filename="profile")
    if node["enable_checkpointing"] is None:  # Lightning would add a checkpoint of its own to callbacks=none
        node["enable_checkpointing"] = any(isinstance(callback, Checkpoint) for callback in both)
    plugins: list[Any] = []
    if has_satellite("resume"):
        from instruct_lit.resume.checkpoint_files import DurableIO

        plugins.append(DurableIO(sharding()))  # checkpoints survive a fault
    given = {"callbacks": both, "logger": loggers or False, "plugins": plugins, "use_distributed_sampler": False}
    trainer = build(node, "trainer", **given)
    if trainer.world_size > 1 and not has_satellite("distributed"):
        needed = f"{trainer.world_size} processes need the folder instruct_lit/distributed"
        raise ConfigError(f"trainer: {needed}; use trainer.devices=1")
    return trainer


def _progress_of(callbacks: Sequence[Callback]) -> list[Callback]:
    """The progress bar of `reports`, with the throughput that `accel` measures; without them Lightning's own."""
    if not (has_satellite("reports") and has_satellite("accel")):
        return []
    from instruct_lit.accel.throughput import Throughput
    from instruct_lit.reports.progress import Progress

    return [Progress(callback.tokens_per_s) for callback in callbacks if isinstance(callback, Throughput)]
