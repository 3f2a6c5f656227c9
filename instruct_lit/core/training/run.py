"""A whole training run, top to bottom: data, model, fit with early stopping, test, answers, files.

`Run` works with the core alone. What satellites add (provenance, reports, several processes, finders) is a `RunHook`.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from instruct_lit.core.data.datamodule import InstructionData
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import Tokenizer
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.responses import exact, write_jsonl
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.training.answers import answer_split
from instruct_lit.core.training.checkpoints import LAST, best_of, load_weights, read_checkpoint
from instruct_lit.core.training.early_stopping import ValidateAtEnd
from instruct_lit.core.training.history import History
from instruct_lit.core.training.module import InstructionTuner
from instruct_lit.core.training.sharding import Sharding
from instruct_lit.errors import TrainingError


@dataclass(frozen=True)
class RunSettings:
    """The values of a run; its objects are built by `RunParts`."""

    run_dir: Path
    seed: int
    fit: bool = True  # False: only test and answer, with the weights of the model or of a checkpoint
    evaluate_base: bool = True
    n_test_responses: int | None = None  # None: answers to all test examples
    optimized_metric: str | None = None
    monitor: str = "val/loss"  # of the best checkpoint
    mode: str = "min"
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    data_facts: Mapping[str, Any] = field(default_factory=dict)  # name and licence, for the bundle


class RunParts(Protocol):
    """Builds the objects of a run, each when the run needs it."""

    sharding: Sharding

    def trainer(self, callbacks: Sequence[Callback]) -> Trainer: ...
    def language(self) -> tuple[Tokenizer, Template]: ...
    def model(self) -> CausalLM: ...
    def data(self, template: Template, tokenizer: Tokenizer, context_length: int) -> InstructionData: ...
    def adapt(self, model: CausalLM) -> None: ...
    def tuner(self, model: CausalLM) -> InstructionTuner: ...
    def engine(self, model: CausalLM, tokenizer: Tokenizer) -> Engine: ...
    def save_bundle(self, run: Run) -> None: ...


class RunHook:
    """Where a satellite plugs into a run. Methods do nothing by default; all ranks call them, except where noted."""

    def callbacks(self, run: Run) -> Sequence[Callback]:
        """Callbacks for the trainer, before the run's own."""
        return ()

    def checkpoint(self, run: Run) -> Path | None:
        """The checkpoint to resume from, or to test with `fit=False`; the first rank asks."""
        return None

    def preparing(self, run: Run) -> AbstractContextManager[None]:
        """Surrounds the building of tokenizer, model and data."""
        return nullcontext()

    def on_prepared(self, run: Run) -> None:
        """After data and model are ready; `run.about` goes into the bundle."""

    def replaces_training(self, run: Run) -> bool:
        """Whether this hook has done the work of the run itself, which then ends."""
        return False

    def fitting(self, run: Run) -> AbstractContextManager[None]:
        """Surrounds the fit."""
        return nullcontext()

    def on_tested(self, run: Run) -> None:
        """Before the files are written, on the first rank; may add to `run.metrics`."""

    def on_end(self, run: Run) -> None:
        """After the files were written, on the first rank."""


class Run:
    """One training run; `run()` returns the value of `optimized_metric`."""

    trainer: Trainer
    tokenizer: Tokenizer
    template: Template
    data: InstructionData
    model: CausalLM  # the whole model, which the bundle gets
    trained: CausalLM  # the model that is trained: `model`, or a copy of it in shards
    tuner: InstructionTuner
    checkpoint: Path | None  # to resume from

    def __init__(self, parts: RunParts, settings: RunSettings, hooks: Sequence[RunHook] = ()) -> None:
        self.parts, self.settings, self.hooks, self.run_dir = parts, settings, hooks, settings.run_dir
        self.history = History(self.run_dir / "history.jsonl", settings.monitor, settings.mode)
        self.metrics: dict[str, Any] = {}
        self.about: dict[str, Any] = {}  # for the bundle
        self.interrupted = False

    def __call__(self) -> float | None:
        """Run, and write all files to the run folder; SystemExit(130) after an interrupt."""
        start, settings = time.perf_counter(), self.settings
        seed_everything(settings.seed, workers=True, verbose=False)
        self._prepare()
        if any(hook.replaces_training(self) for hook in self.hooks):
            return None
        rows: list[dict[str, Any]] = []
        base_rows: list[dict[str, Any]] = []
        if settings.fit:
            if settings.evaluate_base:
                loggers = self.trainer.loggers
                self.trainer.loggers = [] if self.checkpoint else loggers  # which have the base's row already
                base, base_rows = self._evaluated("answers before fine-tuning", self.trained)
                self.trainer.loggers = loggers
                self.metrics |= {f"base/{name}": value for name, value in base.items()}
            self._fit()
        elif self.checkpoint:
            load_weights(self.checkpoint, self.tuner, self.parts.sharding)
        with self._keeping():
            if not self.interrupted:
                metrics, rows = self._evaluated("answers to the test set", self.trained)
                self.metrics |= metrics
                for row, before in zip(rows, base_rows, strict=False):
                    row["base_response"] = before["response"]
            self.parts.sharding.copy_whole(self.trained, self.model)
            self.model.to("cpu")  # off a GPU, on which it stayed from phase to phase
            if self.trainer.is_global_zero:
                self._write(rows, time.perf_counter() - start)
        if not self.trainer.is_global_zero:
            return None
        if self.interrupted:
            print(f"interrupted; to resume, add ckpt_path={self.run_dir} to the same command", file=sys.stderr)
            sys.exit(130)
        return self.metrics.get(settings.optimized_metric, math.nan) if settings.optimized_metric else None

    def _prepare(self) -> None:
        """Build everything, and find the checkpoint to resume from."""
        parts, settings, checkpoint = self.parts, self.settings, None
        added = [callback for hook in self.hooks for callback in hook.callbacks(self)]
        self.trainer = trainer = parts.trainer([*added, self.history, ValidateAtEnd()])
        with ExitStack() as stack:
            for hook in self.hooks:
                stack.enter_context(hook.preparing(self))
            if trainer.is_global_zero:
                checkpoint = next(filter(None, (hook.checkpoint(self) for hook in self.hooks)), None)
            self.tokenizer, self.template = parts.language()
            self.model = parts.model()
            self.data = data = parts.data(self.template, self.tokenizer, self.model.config.context_length)
            data.prepare_data()
        self.checkpoint = trainer.strategy.broadcast(checkpoint)
        parts.adapt(self.model)
        self.trained = copy.deepcopy(self.model) if parts.sharding.applies_to(trainer.strategy) else self.model
        self.tuner = parts.tuner(self.trained)
        data.setup()
        self.metrics |= data.counts
        self.about["data"] = {**settings.data_facts, "fingerprint": data.fingerprint}
        counts = ", ".join(f"{n} {name[2:]}" for name, n in data.counts.items())
        print("\n  ".join([f"data {settings.data_facts.get('name', '')}: {counts}", *data.notes]), flush=True)
        if trainer.is_global_zero:
            (self.run_dir / "split.json").write_text(json.dumps(vars(data.split), default=lambda part: part.tolist()))
            (self.run_dir / "data_notes.json").write_text(json.dumps(data.notes, indent=2) + "\n")
        for hook in self.hooks:
            hook.on_prepared(self)
        if trainer.is_global_zero and self.checkpoint is None:  # a run without a checkpoint starts anew
            self.history.path.unlink(missing_ok=True)

    def _fit(self) -> None:
        """Fit, and load the best weights."""
        trainer = self.trainer
        try:
            with ExitStack() as stack:
                for hook in self.hooks:
                    stack.enter_context(hook.fitting(self))
                trainer.fit(self.tuner, self.data, ckpt_path=self.checkpoint, weights_only=True)
        except SystemExit:  # Lightning's end after Ctrl-C
            self.interrupted = True
        if trainer.global_step == 0 and not self.interrupted:
            why = "the run ended before it (trainer.max_time, a callback, no training data)"
            raise TrainingError(f"no optimizer step was made: {why}; fit=false trains nothing")
        best, best_step, tuner = best_of(trainer), trainer.global_step, self.tuner
        if self.interrupted and self.trained is not self.model:  # in shards, whose other processes have ended
            best, self.trained = best or next(self.run_dir.glob(str(LAST)), None), self.model
            tuner = self.parts.tuner(self.model)
        if best is not None:
            load_weights(best, tuner, self.parts.sharding)
            best_step = int(read_checkpoint(best)["global_step"])
        stopper = trainer.early_stopping_callback
        self.metrics |= {
            "n_steps": trainer.global_step,
            "best_step": best_step,
            "stopped_early": stopper is not None and stopper.stopping_reason != EarlyStoppingReason.NOT_STOPPED,
            "train/tokens": self.tuner.tokens_seen,
        }
        if self.history.best_step:
            self.metrics["val/loss"] = self.history.best_loss

    def _evaluated(self, title: str, model: CausalLM) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Validation and test metrics of a model, and its answers to the test set."""
        trainer, settings = self.trainer, self.settings
        metrics: dict[str, float] = {}
        for evaluate in (trainer.validate, trainer.test):
            metrics |= (evaluate(self.tuner, self.data, verbose=False) or [{}])[0]  # nothing with a limit of 0 batches
        rows = answer_split(
            self.parts.engine(model, self.tokenizer), self.data, "test", settings.n_test_responses, settings.sampling,
            title, trainer, self.parts.sharding,
        )  # fmt: skip
        if rows:
            metrics["test/exact_match"] = sum(map(exact, rows)) / len(rows)
        return metrics, rows

    def _write(self, rows: Sequence[dict[str, Any]], seconds: float) -> None:
        """Write responses, metrics and the bundle, and finish loggers and hooks; what fails does not stop the rest."""
        self.metrics |= {"interrupted": self.interrupted, "seconds": seconds}
        steps: list[Callable[[], Any]] = [partial(hook.on_tested, self) for hook in self.hooks]
        if not self.interrupted:
            steps.append(partial(write_jsonl, self.run_dir / "responses.jsonl", rows))
        steps += [self._write_metrics, partial(self.parts.save_bundle, self)]
        steps += [partial(hook.on_end, self) for hook in self.hooks]
        failures = []
        for step in steps:
            try:
                step()
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _write_metrics(self) -> None:
        self.metrics |= self.data.counts  # those of a stream are complete only now
        (self.run_dir / "metrics.json").write_text(json.dumps(self.metrics, indent=2) + "\n")

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """After an error that follows the training, write the metrics so far and name what the run folder has."""
        try:
            yield
        except (Exception, KeyboardInterrupt):
            if self.settings.fit and self.trainer.is_global_zero:
                with suppress(OSError):
                    self._write_metrics()
                weights = best_of(self.trainer) or self.run_dir / LAST
                files = [self.run_dir / name for name in ("metrics.json", "responses.jsonl", "bundle")]
                kept = ", ".join(str(path) for path in [*files, weights] if path.exists())
                print(f"kept: {kept}; to test the weights, add fit=false ckpt_path={weights}", file=sys.stderr)
            raise
