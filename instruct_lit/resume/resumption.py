"""A run that resumes: the checkpoint that `ckpt_path` means, and what it restores beside Lightning's own states."""

import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from instruct_lit.core.training.checkpoints import LAST, read_checkpoint
from instruct_lit.core.training.early_stopping import is_finished
from instruct_lit.core.training.history import History
from instruct_lit.core.training.run import Run, RunHook
from instruct_lit.core.training.sharding import Sharding
from instruct_lit.errors import CheckpointError
from instruct_lit.resume.checkpoint_files import find_checkpoint
from instruct_lit.resume.compat_lightning import count_logged_steps
from instruct_lit.resume.identity import check_identity, identity_of

NO_BEST = {"best_step": 0, "best_loss": math.inf, "best_value": math.inf}  # the state of a History without validations


class Resumption(RunHook):
    """Finds the checkpoint, refuses that of another run, and restores what Lightning does not.

    Args:
        ckpt_path: None for a run that starts anew.
        own_only: as of `find_checkpoint`.
        identity: what a checkpoint must have in common with this run beside `identity_of`.
    """

    def __init__(self, ckpt_path: str | None, own_only: bool, identity: Mapping[str, str]) -> None:
        self.ckpt_path, self.own_only, self.identity = ckpt_path, own_only, identity

    def callbacks(self, run: Run) -> Sequence[Callback]:
        self.restored = RestoredState(run.history, run.parts.sharding)
        return [self.restored]

    def checkpoint(self, run: Run) -> Path | None:
        if not self.ckpt_path:
            return None
        return find_checkpoint(self.ckpt_path, run.run_dir, self.own_only, run.parts.sharding, run.settings.fit)

    def on_prepared(self, run: Run) -> None:
        self.restored.identity = {**identity_of(run.model, run.data, run.trainer), **self.identity}
        if run.checkpoint is not None and run.settings.fit:
            checkpoint = read_checkpoint(run.checkpoint)
            check_identity(checkpoint["identity"], self.restored.identity)
            if run.trainer.is_global_zero:
                print(f"resumes after step {checkpoint['global_step']}: {run.checkpoint}", flush=True)
        elif run.checkpoint is not None and run.trainer.is_global_zero:
            self._warn_of_others(run, run.checkpoint)

    def _warn_of_others(self, run: Run, path: Path) -> None:
        """Warn where weights that are only tested were trained with another template or base, or on these examples."""
        saved: dict[str, str] = {}
        for file in (path, path.with_name(LAST.name)):  # weights alone have no identity
            with suppress(CheckpointError):
                saved = saved or read_checkpoint(file).get("identity", {})
        here = self.restored.identity
        sets, own_sets = ({part.rpartition("-")[0] for part in of.get("data", "").split("+")} for of in (saved, here))
        of_test = ("split", "data", *(() if "train" in run.data.stored_parts else ("data.seed",)))  # of a stream
        moved = [name for name in of_test if sets & own_sets and saved.get(name, here[name]) != here[name]][:1]
        is_whole = run.tuner.state_dict().keys() <= read_checkpoint(path)["state_dict"].keys()
        frozen = () if is_whole else ("frozen weights",)
        for name in ("model", "adapter.alpha", "template", "tokenizer", *frozen, *moved):
            if name in here and saved.get(name, here[name]) != here[name]:
                what = f"{name} {saved[name]:.120} of its run, {here[name]:.120} here"
                what += "; examples that it was trained on may be in the test set" if name in moved else ""
                warnings.warn(f"ckpt_path={path}: {what}; give the values of its run's config.yaml", stacklevel=1)

    @contextmanager
    def fitting(self, run: Run) -> Iterator[None]:
        try:
            yield
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            if run.checkpoint is None or self.restored.started:
                raise
            kind = f"{type(error).__name__}: {error}".splitlines()[0]
            message = f"{run.checkpoint}: malformed ({kind:.150}); resume from another checkpoint"
            raise CheckpointError(message) from error


class RestoredState(Callback):
    """Restores the rows of the history and the best checkpoints of the run that is resumed, also in another folder.

    Hyperparameters of the optimizer stay those of this run; its moments and the step of the schedule are restored.
    """

    def __init__(self, history: History, sharding: Sharding) -> None:
        self.history, self.sharding = history, sharding
        self.identity: dict[str, str] = {}
        self.started = False  # whether a fit has restored all of its checkpoint, if it resumes one

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["identity"] = self.identity

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and state is not None:
                here, step = Path(callback.dirpath or state["dirpath"]), checkpoint["global_step"]
                checkpoint["callbacks"][callback.state_key] = moved = self._moved(state, here, step, trainer)
                if callback.monitor and state["best_model_path"] and not moved["best_model_path"]:
                    checkpoint["callbacks"][self.history.state_key] |= NO_BEST
                    if trainer.is_global_zero:
                        warnings.warn(
                            f"{state['best_model_path']}: missing, damaged, or of a step after {step}, from which this "
                            "run resumes; its best weights are chosen among the validations from here on",
                            stacklevel=1,
                        )

    def _moved(self, state: dict[str, Any], here: Path, step: int, trainer: Trainer) -> dict[str, Any]:
        """The state of a ModelCheckpoint with those of its files that are of no later step, in the folder of this run.

        Later ones are of a run that was killed before it wrote its last checkpoint, or that resumed elsewhere. Files
        beside the last checkpoint come first: the whole folder may have been moved.
        """
        names = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {}
        for path in {*state["best_k_models"], *(state[name] for name in names)} - {""}:
            name = Path(path).name
            beside, new = Path(trainer.ckpt_path or path).with_name(name), here / name
            old = next((file for file in dict.fromkeys((beside, Path(path))) if _step(file) <= step), None)
            if old is not None:
                moved[path] = str(new)
                if old.resolve() != new.resolve() and trainer.is_global_zero:
                    here.mkdir(parents=True, exist_ok=True)
                    self.sharding.copy_shards(read_checkpoint(old), old, new)
                    shutil.copyfile(old, new)
        best = {moved[path]: score for path, score in state["best_k_models"].items() if path in moved}
        paths = {name: moved.get(state[name], "") for name in names}
        return {**state, "dirpath": str(here), "best_k_models": best, **paths}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hyperparameters = hyperparameters(trainer.optimizers[0])  # before those of the checkpoint replace them
        if trainer.ckpt_path is None or not trainer.is_global_zero:
            return
        path = self.history.path
        before = Path(trainer.ckpt_path).resolve().parent.parent / path.name
        if before.is_file():
            rows = before.read_text().splitlines(keepends=True)[: self.history.n_rows]
            if len(rows) < self.history.n_rows:
                missing = f"{len(rows)} of the {self.history.n_rows} rows up to the checkpoint"
                warnings.warn(f"{before}: has {missing}; a later run began in this folder", stacklevel=1)
            new = path.with_suffix(".part")
            new.write_text("".join(rows))
            os.replace(new, path)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path is not None:
            scheduler: Any = trainer.lr_scheduler_configs[0].scheduler
            set_hyperparameters(trainer.optimizers[0], scheduler, self._hyperparameters)
            if is_finished(trainer):  # a finished run makes no further step
                trainer.should_stop = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = True

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.ckpt_path is not None:
            count_logged_steps(trainer)


def _step(path: Path) -> float:
    """The optimizer step of a checkpoint; inf of one that cannot be read."""
    try:
        return read_checkpoint(path).get("global_step", 0)
    except CheckpointError:
        return math.inf


def hyperparameters(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Everything of the parameter groups but the parameters."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def set_hyperparameters(optimizer: Optimizer, scheduler: LambdaLR, values: list[dict[str, Any]]) -> None:
    """Replace the hyperparameters that a checkpoint has restored; its moments and the step of the schedule stay."""
    for group, own in zip(optimizer.param_groups, values, strict=True):
        group.update(own)
    scheduler.base_lrs = [own["initial_lr"] for own in values]
    for group, base, factor in zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = base * factor(scheduler.last_epoch)
