"""Every argument of lightning.Trainer and every callback of Lightning is obeyed, shown by a small run, or refused."""

import copy
import inspect
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from lightning import Callback, Trainer
from lightning.pytorch import callbacks as of_lightning
from omegaconf import OmegaConf

from instruct_lit.config.check_commands import check_command
from instruct_lit.config.compose import CONF
from instruct_lit.config.run_builders import trainer_of, tuner_of
from instruct_lit.config.schema.constructors import REFUSED_ARGUMENTS, REFUSED_CALLBACKS
from instruct_lit.core.model.gpt import GPT
from instruct_lit.core.training.early_stopping import ValidateAtEnd
from instruct_lit.core.training.history import History
from instruct_lit.core.training.module import InstructionTuner
from instruct_lit.errors import ConfigError
from instruct_lit.reports.progress import Progress
from tests.configs import composed

SGD = (
    "optimizer._target_=torch.optim.SGD", "optimizer.lr=1.0", "optimizer.weight_decay=0.0", "~optimizer.betas",
    "~optimizer.eps", "scheduler=constant",
)  # fmt: skip
QUIET = ("logger=none", "callbacks=none", "trainer.max_epochs=1", "trainer.accelerator=cpu")


@dataclass
class Seen(Callback):
    """What happened in a run: steps at validations, ids of batches, switches of torch that were on."""

    validated: list[int] = field(default_factory=list)
    n_sanity: int = 0
    n_val_batches: int = 0
    batches: list[list[int]] = field(default_factory=list)
    switches: set[str] = field(default_factory=set)
    stop_at: int | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(sorted(batch.example_ids.tolist()))
        on = {
            "anomaly": torch.is_anomaly_enabled(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "benchmark": torch.backends.cudnn.benchmark,
        }
        self.switches |= {name for name, value in on.items() if value}

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.stop_at:
            trainer.should_stop = True

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.sanity_checking:
            self.n_sanity += 1
        self.n_val_batches += 1
        if torch.is_inference_mode_enabled():
            self.switches.add("inference")

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.validated.append(trainer.global_step)


@dataclass
class Fitted:
    """A run of the tiny model; three batches of eight make an epoch."""

    trainer: Trainer
    tuner: InstructionTuner
    before: GPT
    seen: Seen
    folder: Path

    @property
    def n_steps(self) -> int:
        return self.trainer.global_step

    def has(self, kind: type) -> bool:
        return any(isinstance(callback, kind) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]

    def largest_change(self) -> float:
        pairs = zip(self.before.parameters(), self.tuner.model.parameters(), strict=True)
        return max(float((after - before).detach().abs().max()) for before, after in pairs)

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture
def run(base: GPT, make_data: Callable, tmp_path: Path) -> Callable[..., Fitted]:
    def fit(*overrides: str, stop_at: int | None = None) -> Fitted:
        small = ("model.path=null", "model.pretrained=false", f"hydra.runtime.output_dir={tmp_path}/out")
        keys = {override.partition("=")[0] for override in overrides}
        config = composed(
            "train", *small, *(q for q in QUIET if q.partition("=")[0] not in keys), *overrides, hydra=True
        )
        HydraConfig.instance().set_config(config)
        check_command("train", config)
        (tmp_path / "out").mkdir(exist_ok=True)
        seen = Seen(stop_at=stop_at)
        history = History(tmp_path / "out" / "history.jsonl")
        trainer = trainer_of(config, [history, ValidateAtEnd(), seen])
        tuner = tuner_of(config, copy.deepcopy(base))
        trainer.fit(tuner, make_data())
        return Fitted(trainer, tuner, base, seen, tmp_path / "out")

    return fit


def rows(fitted: Fitted) -> list[dict]:
    return [json.loads(line) for line in (fitted.folder / "history.jsonl").read_text().splitlines()]


Shown = tuple[tuple[str, ...], Callable[[Fitted], bool]]
ARGUMENTS: dict[str, Shown] = {
    "accelerator": (("trainer.accelerator=cpu",), lambda run: run.tuner.device.type == "cpu"),
    "strategy": (("trainer.strategy=auto",), lambda run: type(run.trainer.strategy).__name__ == "SingleDeviceStrategy"),
    "devices": (("trainer.devices=1",), lambda run: run.trainer.num_devices == 1),
    "num_nodes": (("trainer.num_nodes=1",), lambda run: run.trainer.num_nodes == 1),
    "precision": (
        ("trainer.precision=bf16-mixed",),
        lambda run: run.trainer.precision == "bf16-mixed" and 0 < run.largest_change() < 1,
    ),
    "max_epochs": (("trainer.max_epochs=2",), lambda run: run.n_steps == 6),
    "min_epochs": (("trainer.max_epochs=3", "trainer.min_epochs=2"), lambda run: run.n_steps == 6),
    "max_steps": (("trainer.max_steps=2",), lambda run: run.n_steps == 2 and run.seen.validated[-1] == 2),
    "min_steps": (("trainer.max_epochs=3", "trainer.min_steps=5"), lambda run: run.n_steps == 5),
    "max_time": (("trainer.max_epochs=9", "trainer.max_time={milliseconds: 1}"), lambda run: run.n_steps == 1),
    "limit_train_batches": (("trainer.limit_train_batches=2",), lambda run: run.n_steps == 2),
    "limit_val_batches": (
        ("trainer.limit_val_batches=1", "trainer.val_check_interval=1.0", "data.eval_batch_size=1"),
        lambda run: run.seen.n_val_batches == len(run.seen.validated),
    ),
    "limit_test_batches": (
        ("trainer.limit_test_batches=1",),
        lambda run: run.trainer.test(run.tuner, run.trainer.datamodule) and run.trainer.num_test_batches == [1],  # type: ignore[attr-defined]
    ),
    "overfit_batches": (
        ("trainer.overfit_batches=1", "trainer.max_epochs=3"),
        lambda run: len(run.seen.batches) == 3 and len({*map(tuple, run.seen.batches)}) == 1,
    ),
    "fast_dev_run": (
        ("trainer.fast_dev_run=true", "callbacks=default", "trainer.max_epochs=3"),
        lambda run: run.n_steps == 1 and run.files() == ["history.jsonl"],
    ),
    "val_check_interval": (("trainer.val_check_interval=1",), lambda run: run.seen.validated == [1, 2, 3]),
    "check_val_every_n_epoch": (
        ("trainer.check_val_every_n_epoch=null", "trainer.val_check_interval=5", "trainer.max_epochs=4"),
        lambda run: run.seen.validated == [5, 10, 12],
    ),
    "num_sanity_val_steps": (("trainer.num_sanity_val_steps=1",), lambda run: run.seen.n_sanity == 1),
    "log_every_n_steps": (
        ("trainer.log_every_n_steps=2",),
        lambda run: [row["step"] for row in rows(run) if "train/loss" in row] == [2],
    ),
    "reload_dataloaders_every_n_epochs": (
        ("trainer.reload_dataloaders_every_n_epochs=1", "trainer.max_epochs=2"),
        lambda run: run.n_steps == 6 and run.seen.batches[:3] != run.seen.batches[3:],
    ),
    "enable_checkpointing": (
        ("trainer.enable_checkpointing=false", "callbacks=default"),
        lambda run: run.files() == ["history.jsonl"],
    ),
    "enable_progress_bar": (("trainer.enable_progress_bar=false",), lambda run: not run.has(of_lightning.ProgressBar)),
    "enable_model_summary": (("trainer.enable_model_summary=true",), lambda run: run.has(of_lightning.ModelSummary)),
    "enable_autolog_hparams": (
        ("trainer.enable_autolog_hparams=false",),
        lambda run: run.trainer.enable_autolog_hparams is False,  # type: ignore[attr-defined]
    ),
    "accumulate_grad_batches": (("trainer.accumulate_grad_batches=2",), lambda run: run.n_steps == 2),
    "gradient_clip_val": (
        (*SGD, "trainer.gradient_clip_val=1e-6", "trainer.max_steps=1"),
        lambda run: 0 < run.largest_change() < 1e-6,
    ),
    "gradient_clip_algorithm": (
        (*SGD, "trainer.gradient_clip_algorithm=value", "trainer.gradient_clip_val=1e-3", "trainer.max_steps=1"),
        lambda run: run.largest_change() == pytest.approx(1e-3, rel=1e-3),
    ),
    "deterministic": (("trainer.deterministic=true",), lambda run: "deterministic" in run.seen.switches),
    "benchmark": (("trainer.benchmark=true",), lambda run: "benchmark" in run.seen.switches),
    "inference_mode": (("trainer.inference_mode=false",), lambda run: "inference" not in run.seen.switches),
    "detect_anomaly": (("trainer.detect_anomaly=true",), lambda run: "anomaly" in run.seen.switches),
    "profiler": (("trainer.profiler=simple",), lambda run: "fit-profile.txt" in run.files()),
    "default_root_dir": (
        ("trainer.default_root_dir=elsewhere",),
        lambda run: Path(run.trainer.default_root_dir).name == "elsewhere",
    ),
}


def test_every_argument_of_the_trainer_is_obeyed_or_refused() -> None:
    arguments = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    assert arguments == set(ARGUMENTS) | set(REFUSED_ARGUMENTS)
    assert not set(ARGUMENTS) & set(REFUSED_ARGUMENTS)


def test_every_argument_that_is_obeyed_is_a_key() -> None:
    keys = set(OmegaConf.load(CONF / "trainer" / "default.yaml")) - {"_target_"}
    assert keys == set(ARGUMENTS)


RARE = {  # Lightning's own work, with nothing of ours in between
    "num_nodes", "min_epochs", "limit_test_batches", "num_sanity_val_steps", "reload_dataloaders_every_n_epochs",
    "enable_progress_bar", "enable_model_summary", "enable_autolog_hparams", "benchmark", "inference_mode", "detect_anomaly",
    "profiler", "default_root_dir", "strategy", "devices", "EMAWeightAveraging", "RichModelSummary", "ModelSummary",
    "RichProgressBar", "Timer", "DeviceStatsMonitor",
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in RARE else n for n in ARGUMENTS])
def test_an_argument_is_obeyed(name: str, run: Callable[..., Fitted]) -> None:
    overrides, shown = ARGUMENTS[name]
    stop_at = 1 if name.startswith("min_") else None
    assert shown(run(*overrides, stop_at=stop_at))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_clipping_by_value_reaches_the_fused_optimizer_and_its_weight_copies(precision: str, run: Callable) -> None:
    clipped = ("trainer.gradient_clip_algorithm=value", "trainer.gradient_clip_val=1e-4", "trainer.max_steps=1")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*cannot multiply in bf16.*")
        fitted = run(*clipped, f"trainer.precision={precision}")
    moments = [state["exp_avg"].abs().max() for state in fitted.trainer.optimizers[0].state.values()]
    assert max(moments) == pytest.approx(0.1 * 1e-4, rel=1e-2)  # of gradients beyond the bound, times 1 - beta1


@pytest.mark.parametrize("name", REFUSED_ARGUMENTS)
def test_an_argument_is_refused_with_the_reason(name: str) -> None:
    default = inspect.signature(Trainer.__init__).parameters[name].default
    value = json.dumps(not default) if isinstance(default, bool) else "3"
    with pytest.raises(ConfigError) as caught:
        check_command("train", composed("train", f"+trainer.{name}={value}"))
    assert re.search(rf"^trainer.{name}=.*: {re.escape(REFUSED_ARGUMENTS[name])}$", str(caught.value), re.M)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.strategy=ddp_spawn"], "trainer.strategy=ddp_spawn: allowed are auto, ddp, "),
        (["trainer.num_nodes=2"], "trainer.num_nodes=2: start the processes with torchrun or SLURM"),
        (["trainer.max_steps=0"], "trainer.max_steps=0: no step could be made; fit=false trains nothing"),
        (["trainer.limit_train_batches=0"], "trainer.limit_train_batches=0: no step could be made"),
        (["trainer.max_epochs=-1"], "trainer.max_epochs=-1: scheduler.decay=cosine requires the number of steps"),
        (["trainer.val_check_interval=2.5"], "trainer.val_check_interval=2.5: must be a fraction up to 1, or a whole"),
        (["trainer.gradient_clip_algorithm=max"], "trainer.gradient_clip_algorithm=max: allowed are norm, value"),
    ],
)
def test_a_value_that_cannot_be_obeyed_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_command("train", composed("train", *overrides))
    assert message in str(caught.value)


def callback(name: str, **options: Any) -> str:
    arguments = ", ".join(f"{key}: {value}" for key, value in options.items())
    return f"+callbacks.one={{_target_: lightning.pytorch.callbacks.{name}{', ' + arguments if arguments else ''}}}"


TENSORBOARD = "logger=tensorboard"
CALLBACKS: dict[str, Shown] = {
    "DeviceStatsMonitor": (
        (callback("DeviceStatsMonitor", cpu_stats="true"), TENSORBOARD),
        lambda run: run.n_steps == 3,
    ),
    "EMAWeightAveraging": (
        (callback("EMAWeightAveraging", decay=0.5), *SGD),
        lambda run: run.largest_change() > 0,
    ),
    "EarlyStopping": (
        (callback("EarlyStopping", monitor="val/loss", patience=1, min_delta=99), "trainer.val_check_interval=0.34"),
        lambda run: run.n_steps == 2,
    ),
    "LearningRateMonitor": ((callback("LearningRateMonitor"), TENSORBOARD), lambda run: run.n_steps == 3),
    "ModelCheckpoint": (
        (
            callback(
                "ModelCheckpoint",
                dirpath="${hydra:runtime.output_dir}/kept",
                filename="'{step}'",
                every_n_train_steps=2,
            ),
        ),
        lambda run: "kept/step=2.ckpt" in run.files(),
    ),
    "ModelSummary": ((callback("ModelSummary"),), lambda run: run.has(of_lightning.ModelSummary)),
    "RichModelSummary": ((callback("RichModelSummary"),), lambda run: run.has(of_lightning.RichModelSummary)),
    "RichProgressBar": (
        (callback("RichProgressBar"),),
        lambda run: run.has(of_lightning.RichProgressBar) and not run.has(Progress),
    ),
    "TQDMProgressBar": (
        (callback("TQDMProgressBar"),),
        lambda run: run.has(of_lightning.TQDMProgressBar) and not run.has(Progress),
    ),
    "Timer": ((callback("Timer", duration="{milliseconds: 1}"), "trainer.max_epochs=9"), lambda run: run.n_steps == 1),
    "WeightAveraging": ((callback("WeightAveraging"), *SGD), lambda run: run.largest_change() > 0),
}


def test_every_callback_of_lightning_is_obeyed_or_refused() -> None:
    assert set(of_lightning.__all__) == set(CALLBACKS) | set(REFUSED_CALLBACKS)
    assert not set(CALLBACKS) & set(REFUSED_CALLBACKS)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in RARE else n for n in CALLBACKS])
def test_a_callback_is_obeyed(name: str, run: Callable[..., Fitted]) -> None:
    if name.startswith("Rich"):
        pytest.importorskip("rich")
    overrides, shown = CALLBACKS[name]
    assert shown(run(*overrides))


@pytest.mark.parametrize("name", REFUSED_CALLBACKS)
def test_a_callback_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_command("train", composed("train", callback(name)))
    assert (
        f"callbacks.one._target_=lightning.pytorch.callbacks.{name}: not supported; {REFUSED_CALLBACKS[name]}"
        in str(caught.value)
    )


def test_lightning_is_the_version_whose_options_were_read() -> None:
    assert lightning.__version__.startswith("2."), "read the documentation of the new options"
