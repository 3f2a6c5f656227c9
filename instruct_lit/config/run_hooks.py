"""What configuration and satellites add to a training run, each as a `RunHook`."""

from __future__ import annotations

import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning import Callback
from omegaconf import DictConfig, OmegaConf

from instruct_lit.config.check_run import check_limits, check_split
from instruct_lit.config.compose import differences
from instruct_lit.config.preflight import Preflight
from instruct_lit.config.provenance import provenance, write_provenance
from instruct_lit.config.satellites import has_satellite
from instruct_lit.config.schema.options import shown
from instruct_lit.config.targets import build
from instruct_lit.core.model.causal import on_device
from instruct_lit.core.model.pretrained import DTYPES
from instruct_lit.core.training.run import Run, RunHook
from instruct_lit.errors import ConfigError

if TYPE_CHECKING:
    from instruct_lit.accel.memory import PeakMemory
    from instruct_lit.config.forgetting_builders import Measured
    from instruct_lit.exporters.verification import Reference


SETTINGS = (
    "model.name", "data.name", "template.name", "data.mask_prompt", "adapter.kind", "optimizer.lr", "data.batch_size",
    "trainer.max_epochs", "seed",
)  # fmt: skip
COMPARED = ("val/loss", "val/response_loss", "test/loss", "test/exact_match")  # in TensorBoard's HPARAMS


class ConfiguredHook(RunHook):
    """A hook that reads the configuration of its run."""

    def __init__(self, config: DictConfig) -> None:
        self.config = config


def hooks_of(config: DictConfig) -> list[RunHook]:
    """The hooks of a configuration and of the satellites that are installed."""
    if config.ckpt_path and not has_satellite("resume"):
        raise ConfigError(f"ckpt_path={config.ckpt_path}: needs the folder instruct_lit/resume; start a new run")
    trains = config.finder is None
    has_code = config.model.get("trust_remote_code", False)  # which no fresh process runs unasked
    verifies = trains and config.verify and not has_code
    if trains and config.verify and has_code:
        warnings.warn(
            "model.trust_remote_code=true: the bundle has the model's code, so it is not verified, and no command but "
            "train and peek opens it, again with model.trust_remote_code=true",
            stacklevel=2,
        )
    hooks: list[tuple[Callable[[DictConfig], RunHook], bool, tuple[str, ...]]] = [  # with the satellites they need
        (Utilisation, True, ("accel",)),
        (_resumption, True, ("resume",)),
        (Processes, True, ("distributed",)),
        (Checks, True, ()),
        (Provenance, True, ()),
        (MixtureShares, bool(config.data.sets), ("datasets",)),
        (Finder, not trains, ()),
        (Forgetting, trains and config.forgetting.enabled, ("evaluation",)),
        (Reports, True, ("reports",)),
        (lambda _: Preflight(), trains, ()),
        (Verification, verifies, ("exporters", "hf")),
    ]
    return [hook(config) for hook, wanted, needs in hooks if wanted and all(map(has_satellite, needs))]


def _resumption(config: DictConfig) -> RunHook:
    """satellite resume: the checkpoint that `ckpt_path` means, of a run that this configuration can resume."""
    from instruct_lit.resume.resumption import Resumption

    own_only = any(override.startswith("hydra.run.dir=") for override in HydraConfig.get().overrides.hydra)
    return Resumption(config.ckpt_path, own_only, identity_of(config))


def identity_of(config: DictConfig) -> dict[str, str]:
    """What training takes from a checkpoint and the configuration cannot change in a resumed run."""
    best = OmegaConf.select(config, "callbacks.best_checkpoint") or {}
    targets = [str(node.get("_target_")) for node in (config.callbacks or {}).values() if node is not None]
    return {
        "seed": str(config.seed),  # the states of the random generators
        "optimizer": str(config.optimizer.get("_target_")),  # the moments
        "best checkpoint": f"{best.get('mode')} of {best.get('monitor')}",  # the best value so far
        "adapter.alpha": str(config.adapter.alpha),  # the scale of the updates
        "weight averaging": str([t for t in targets if t.endswith("WeightAveraging")]),  # the average
    }


class Processes(ConfiguredHook):
    """satellite distributed: one process prepares the data, and errors of another process are explained."""

    @contextmanager
    def preparing(self, run: Run) -> Iterator[None]:
        from instruct_lit.distributed.processes import first_rank_first, silence_other_ranks

        silence_other_ranks(run.trainer)
        with first_rank_first(run.trainer):
            yield

    def fitting(self, run: Run) -> AbstractContextManager[None]:
        from instruct_lit.distributed.processes import explained_peers

        return explained_peers(run.trainer)


class Checks(ConfiguredHook):
    """Refuses data and limits of the trainer that leave nothing to train on, validate or test."""

    def on_prepared(self, run: Run) -> None:
        check_split(run.data)
        fits = self.config.fit and self.config.finder is None
        check_limits(run.data, run.trainer, fits, self.config.scheduler.warmup_steps)

    @contextmanager
    def fitting(self, run: Run) -> Iterator[None]:
        yield
        trainer = run.trainer
        if self.config.data.streaming and 0 < trainer.global_step < trainer.max_steps and not trainer.should_stop:
            ended = f"warning: trainer.max_steps={trainer.max_steps}: trainer.max_epochs={trainer.max_epochs} ended the"
            print(f"{ended} run after {trainer.global_step} steps; raise that, or -1", flush=True)


class Provenance(ConfiguredHook):
    """Writes config.yaml and provenance.json."""

    @contextmanager
    def preparing(self, run: Run) -> Iterator[None]:
        if run.trainer.is_global_zero:
            (run.run_dir / "config.yaml").write_text(OmegaConf.to_yaml(self.config, resolve=True), encoding="utf-8")
        yield

    def on_prepared(self, run: Run) -> None:
        config, trainer = self.config, run.trainer
        if not trainer.is_global_zero:
            return
        command = ["python", "-m", "instruct_lit.train", *sys.argv[1:]]
        seeds = {"seed": config.seed, "data.seed": config.data.seed}
        origin = provenance(command, differences(config, "train"), run, seeds)
        run.about |= {"command": shlex.join(command), "provenance": origin}
        # The checksum of large weights takes seconds, during which the run does what does not change them.
        self.written = ThreadPoolExecutor(1).submit(write_provenance, run.run_dir, origin, run.model.state_dict())
        # Nor may it copy from a GPU while the base's answers record graphs.
        records = config.evaluate_base and trainer.strategy.root_device.type != "cpu"
        if records or not config.fit or config.finder is not None or trainer.world_size > 1:
            self.written.result()

    @contextmanager
    def fitting(self, run: Run) -> Iterator[None]:
        if run.trainer.is_global_zero:
            self.written.result()
        yield


class MixtureShares(ConfiguredHook):
    """satellite datasets: prints and records what an epoch sees of each data set of a mixture."""

    def on_prepared(self, run: Run) -> None:
        data: Any = run.data
        shares = data.shares()
        n_examples, n_tokens = (sum(getattr(s, f) for s in shares.values()) for f in ("n_examples", "n_learnt_tokens"))
        for name, share in shares.items():
            run.metrics |= {f"mixture/{name}/{field}": value for field, value in vars(share).items()}
            print(
                f"  {name}: {share.n_examples / n_examples:.1%} of an epoch's examples, "
                f"{share.n_learnt_tokens / n_tokens:.1%} of its supervised tokens, each seen {share.repeats:.2f} times",
                flush=True,
            )


class Utilisation(ConfiguredHook):
    """satellite accel: peak memory, advice when memory is exhausted, and the utilisation of the device."""

    memory: PeakMemory

    def callbacks(self, run: Run) -> Sequence[Callback]:
        from instruct_lit.accel.throughput import Throughput

        self.throughput = Throughput()
        return [self.throughput]

    @contextmanager
    def preparing(self, run: Run) -> Iterator[None]:
        yield
        from instruct_lit.accel.memory import PeakMemory

        self.memory = PeakMemory(run.trainer.strategy.root_device.type)

    def fitting(self, run: Run) -> AbstractContextManager[None]:
        from instruct_lit.accel.memory import explained_memory

        device, n_micro_batches = run.trainer.strategy.root_device, run.trainer.accumulate_grad_batches
        return explained_memory(run.tuner, device, self.memory, run.data.batching.batch_size, n_micro_batches)

    def on_tested(self, run: Run) -> None:
        from instruct_lit.accel.hardware import matrix_rate, needed_flops

        trainer, measured = run.trainer, self.throughput
        peak = self.memory.read()  # without the products below
        if run.settings.fit:
            run.metrics |= measured.figures()
            with suppress(torch.OutOfMemoryError):  # a model may leave no room for them
                rate = trainer.world_size * matrix_rate(trainer.strategy.root_device, trainer.precision)
                flops = needed_flops(run.model, measured.n_tokens, measured.n_supervised)
                run.metrics["flop_utilisation"] = flops / max(1e-9, measured.training_s) / rate
                run.metrics["matrix_flops_per_s"] = rate
        run.metrics["peak_memory_bytes"] = peak


class Forgetting(ConfiguredHook):
    """satellite evaluation: the loss on general text, and a benchmark on request, before and after training."""

    before: Measured | None = None

    def __init__(self, config: DictConfig) -> None:
        from instruct_lit.config.forgetting_builders import ForgettingProbe

        super().__init__(config)
        self.probe = ForgettingProbe(config.forgetting, config.model, Path(config.paths.cache), config.seed)

    def on_prepared(self, run: Run) -> None:
        config = self.config
        if run.trainer.is_global_zero and config.fit and config.evaluate_base and config.model.pretrained:
            self.before = self._measured(run, is_base=True)

    def on_tested(self, run: Run) -> None:
        from instruct_lit.evaluation.forgetting import as_metrics

        if not run.interrupted:
            for change in self.probe.changes(self._measured(run), self.before):
                run.metrics |= as_metrics(change)

    def _measured(self, run: Run, is_base: bool = False) -> Measured:
        # A model that is trained in shards may not fit on one device.
        device = run.trainer.strategy.root_device if run.trained is run.model else torch.device("cpu")
        with on_device(run.model, device):
            return self.probe.measured(run.model, run.tokenizer, run.template, run.run_dir, is_base)


class Finder(ConfiguredHook):
    """satellite sweeps: a search for a setting in place of the training."""

    def __init__(self, config: DictConfig) -> None:
        self.search = build(config.finder, "finder")  # what it cannot be built of is refused before the data are read

    def replaces_training(self, run: Run) -> bool:
        if run.trainer.world_size > 1:
            raise ConfigError("finder: runs on one device; set trainer.devices=1, the result is per device")
        self.search(run.trainer, run.tuner, run.data, run.run_dir)
        return True


class Reports(ConfiguredHook):
    """satellite reports: the page, the plot and the summary; final metrics and settings that matter in every logger."""

    def fitting(self, run: Run) -> AbstractContextManager[None]:
        from instruct_lit.reports.loggers import steps_from_one

        return steps_from_one(run.trainer.loggers)

    def on_end(self, run: Run) -> None:
        from instruct_lit.reports.loggers import log_results
        from instruct_lit.reports.run_page import plot_losses, print_summary, write_report

        plot_losses(run.run_dir)
        differing = [(key, shown(default), shown(value)) for key, default, value in differences(self.config, "train")]
        write_report(run.run_dir, differing, sys.argv[1:], self.config.name)
        print_summary(run.run_dir, run.metrics)
        trainer: Any = run.trainer
        settings = settings_to_compare(self.config, sys.argv[1:]) if trainer.enable_autolog_hparams else {}
        compared = dict.fromkeys([*COMPARED, *filter(None, [self.config.optimized_metric])])
        for logger in trainer.loggers:
            log_results(logger, run, settings, compared)
            logger.finalize("success")


def settings_to_compare(config: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """The settings that matter in every run, and those that a command line sets; no folders and constructors."""
    given = [override.partition("=")[0].lstrip("+~") for override in overrides]
    keys = [*SETTINGS, *(key for key in given if not re.search(r"path|dir|name|_target_|^hydra|^verify", key))]
    values = {key: OmegaConf.select(config, key) for key in dict.fromkeys(keys)}
    return {key: value for key, value in values.items() if isinstance(value, bool | int | float | str)}


class Verification(ConfiguredHook):
    """satellite exporters: opens the bundle in a fresh process and compares it with the trained model."""

    def on_tested(self, run: Run) -> None:
        if not run.interrupted:
            self.trained = self._reference(run)

    def on_end(self, run: Run) -> None:
        from instruct_lit.exporters.verification import verify_bundle

        if not run.interrupted:
            adapter, dtype = self.config.adapter, DTYPES.get(self.config.bundle_dtype, run.model.base_dtype)
            stored = dtype if adapter.kind == "none" or adapter.merge else None
            verify_bundle(run.run_dir / "bundle", run.model, self.trained, lambda: self._reference(run), stored)

    def _reference(self, run: Run) -> Reference:
        from instruct_lit.exporters.verification import N_LOSSES, reference_of

        store, indices = run.data.examples_of("test")
        return reference_of(run.model, run.tokenizer, run.template, (store.example(int(i)) for i in indices[:N_LOSSES]))
