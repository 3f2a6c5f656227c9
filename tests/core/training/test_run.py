"""A whole run with the core alone: parts in plain form, no satellite, and hooks where satellites plug in."""

import copy
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from instruct_lit.core.bundle import open_model, save_bundle
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.training.checkpoints import Checkpoint
from instruct_lit.core.training.run import Run, RunHook, RunSettings
from instruct_lit.core.training.sharding import Sharding
from instruct_lit.errors import ConfigError
from instruct_lit.resume.checkpoint_files import DurableIO
from instruct_lit.resume.last_checkpoint import LastCheckpoint
from tests.fixtures.training import TEMPLATE


class Parts:
    """The parts of a small run."""

    def __init__(self, folder: Path, base: Any, make_tuner: Callable, make_data: Callable, **options: Any) -> None:
        self.folder, self.base, self.make_tuner, self.make_data, self.options = (
            folder,
            base,
            make_tuner,
            make_data,
            options,
        )
        self.sharding = Sharding()

    def trainer(self, callbacks: Any) -> Trainer:
        checkpoints = self.folder / "checkpoints"
        ours = [
            EarlyStopping("val/loss", patience=1, min_delta=10.0, strict=False), LastCheckpoint(str(checkpoints)),
            Checkpoint(checkpoints, filename="best", monitor="val/loss", enable_version_counter=False, save_on_train_epoch_end=False),
        ]  # fmt: skip
        settings = {"max_epochs": 4, "log_every_n_steps": 1, "num_sanity_val_steps": 0, "logger": False, **self.options}
        return Trainer(
            accelerator="cpu", enable_model_summary=False, use_distributed_sampler=False,
            callbacks=[*callbacks, *ours], plugins=[DurableIO()], **settings,
        )  # fmt: skip

    def language(self) -> Any:
        return GPT2Tokenizer(), TEMPLATE

    def model(self) -> Any:
        return copy.deepcopy(self.base)

    def data(self, template: Any, tokenizer: Any, context_length: int) -> Any:
        return self.make_data()

    def adapt(self, model: Any) -> None:
        pass

    def tuner(self, model: Any) -> Any:
        tuner = self.make_tuner()
        tuner.model = model
        tuner.step.attach(model)
        return tuner

    def engine(self, model: Any, tokenizer: Any) -> Engine:
        return Engine(model, tokenizer)

    def save_bundle(self, run: Run) -> None:
        save_bundle(
            run.run_dir / "bundle", run.model, run.tokenizer, run.template, asdict(run.settings.sampling), run.about
        )


@pytest.fixture
def parts(tmp_path: Path, base: Any, make_tuner: Callable, make_data: Callable) -> Callable[..., Parts]:
    return lambda **options: Parts(tmp_path, base, make_tuner, make_data, **options)


def raising(error: Exception) -> Callable[..., Any]:
    def refuse(*arguments: Any) -> Any:
        raise error

    return refuse


def settings(folder: Path, **values: Any) -> RunSettings:
    sampling = SamplingSettings(max_new_tokens=3)
    facts = {"name": "demo", "licence": "none"}
    return RunSettings(folder, 1, sampling=sampling, optimized_metric="test/loss", data_facts=facts, **values)


def test_a_run_of_the_core_alone(
    parts: Callable[..., Parts], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = Run(parts(), settings(tmp_path, n_test_responses=4))()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["test/loss"] == value and metrics["stopped_early"] and metrics["n_steps"] == 6
    assert metrics["base/val/loss"] > 0 and metrics["train/tokens"] > 0 and metrics["n_train"] == 24
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    answers = [json.loads(line) for line in (tmp_path / "responses.jsonl").read_text().splitlines()]
    assert len(answers) == 4 and all({"response", "base_response"} <= answer.keys() for answer in answers)
    assert open_model(tmp_path / "bundle").about["data"]["name"] == "demo"
    assert "data demo: 24 train, 9 val, 7 test" in capsys.readouterr().out


class Interruption(Callback):
    """Ends the run in its second epoch, as a signal does."""

    def on_train_batch_start(self, trainer: Trainer, *arguments: Any) -> None:
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)


class LostShards(Sharding):
    """Shards of processes that end with an interrupted fit: whoever asks them afterwards waits for nobody."""

    def applies_to(self, strategy: Any) -> bool:
        return True

    def load(self, module: Any, checkpoint: dict[str, Any], path: Path) -> bool:
        assert module.model is not self.trained, "a collective operation"
        return False

    def shard(self, model: Any, strategy: Any) -> None:
        self.trained = model

    def copy_whole(self, trained: Any, whole: Any) -> None:
        assert trained is whole, "a collective operation"


def test_an_interrupted_run_in_shards_ends_without_the_other_processes(
    parts: Callable[..., Parts], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning ends them; the bundle has the best weights all the same."""
    own = parts()
    own.sharding, make_trainer, make_tuner = LostShards(), own.trainer, own.tuner
    own.trainer = lambda callbacks: make_trainer([*callbacks, Interruption()])  # type: ignore[method-assign]

    def tuner(model: Any) -> Any:
        made = make_tuner(model)
        made.sharding = own.sharding
        return made

    own.tuner = tuner  # type: ignore[method-assign]
    with pytest.raises(SystemExit) as ended:
        Run(own, settings(tmp_path, evaluate_base=False))()
    assert ended.value.code == 130 and "interrupted; to resume, add ckpt_path=" in capsys.readouterr().err
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["interrupted"] and 0 < metrics["best_step"] <= metrics["n_steps"]
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for name, weight in open_model(tmp_path / "bundle").model.state_dict().items():
        assert torch.equal(weight, best[f"model.{name}"]), name


class FromCheckpoint(RunHook):
    def __init__(self, path: Path) -> None:
        self.path = path

    def checkpoint(self, run: Run) -> Path:
        return self.path


def test_without_fit_the_weights_of_the_checkpoint_are_tested(parts: Callable[..., Parts], tmp_path: Path) -> None:
    fitted = Run(parts(max_steps=3), settings(tmp_path, evaluate_base=False, n_test_responses=0))()
    last = tmp_path / "checkpoints" / "last.ckpt"
    tested = Run(parts(), settings(tmp_path, fit=False, n_test_responses=0), [FromCheckpoint(last)])()
    assert tested == fitted
    assert "n_steps" not in json.loads((tmp_path / "metrics.json").read_text())


class Recorded(RunHook):
    """The names of the hooks in the order of their calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    @contextmanager
    def preparing(self, run: Run) -> Iterator[None]:
        self.calls.append("preparing")
        yield
        self.calls.append("prepared")

    def on_prepared(self, run: Run) -> None:
        self.calls.append("on_prepared")

    @contextmanager
    def fitting(self, run: Run) -> Iterator[None]:
        self.calls.append("fitting")
        yield
        self.calls.append("fitted")

    def on_tested(self, run: Run) -> None:
        self.calls.append("on_tested")
        run.metrics["extra"] = 1

    def on_end(self, run: Run) -> None:
        self.calls.append("on_end")


def test_hooks_are_called_in_their_order(parts: Callable[..., Parts], tmp_path: Path) -> None:
    hook = Recorded()
    Run(parts(max_steps=1), settings(tmp_path, evaluate_base=False, n_test_responses=0), [hook])()
    assert hook.calls == ["preparing", "prepared", "on_prepared", "fitting", "fitted", "on_tested", "on_end"]
    assert json.loads((tmp_path / "metrics.json").read_text())["extra"] == 1


def test_a_run_that_is_refused_leaves_the_curves_of_an_earlier_one(
    parts: Callable[..., Parts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Preflight(RunHook):
        def on_prepared(self, run: Run) -> None:
            raise ConfigError("the bundle cannot be written")

    (tmp_path / "history.jsonl").write_text("earlier\n")
    with pytest.raises(ConfigError, match="the bundle cannot be written"):
        Run(parts(), settings(tmp_path), [Preflight()])()
    own = parts(max_steps=1)
    monkeypatch.setattr(own, "data", raising(ConfigError("data.path=x: no such file")))
    with pytest.raises(ConfigError, match="no such file"):
        Run(own, settings(tmp_path))()
    assert (tmp_path / "history.jsonl").read_text() == "earlier\n"
    Run(parts(max_steps=1), settings(tmp_path, evaluate_base=False, n_test_responses=0))()
    assert "earlier" not in (tmp_path / "history.jsonl").read_text()


def test_a_hook_may_replace_the_training(parts: Callable[..., Parts], tmp_path: Path) -> None:
    class Finder(RunHook):
        def replaces_training(self, run: Run) -> bool:
            return True

    assert Run(parts(), settings(tmp_path), [Finder()])() is None
    assert not (tmp_path / "metrics.json").exists()
