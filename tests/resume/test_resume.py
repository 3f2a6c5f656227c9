"""A run that is ended anywhere and resumed is the run that would have been."""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn

from instruct_lit.core.training.checkpoints import Checkpoint
from instruct_lit.core.training.early_stopping import ValidateAtEnd
from instruct_lit.core.training.history import History
from instruct_lit.core.training.module import InstructionTuner
from instruct_lit.resume import last_checkpoint
from instruct_lit.resume.checkpoint_files import DurableIO
from instruct_lit.resume.last_checkpoint import LastCheckpoint, random_state, set_random_state

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
QUICK_SIGNAL = (signal.SIGTERM, 3)
pytestmark = pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists.*")


class Recorder(Callback):
    """What a run does: the examples of every batch, and a draw from each random generator beside it."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        draws = (torch.rand(()).item(), np.random.rand(), random.random())
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.seen.append((trainer.current_epoch, batch_idx, batch.example_ids.tolist(), rate, *draws))


class KeepAll(DurableIO):
    """Keeps a copy of every checkpoint, each with the run folder as it was then, for a kill right after it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.n = folder, 0

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        super().save_checkpoint(checkpoint, path, storage_options)
        if Path(path).name == "last.ckpt":
            shutil.copytree(Path(path).parent.parent, self.folder / f"kill-{self.n}")
            self.n += 1


class Run:
    """One training with everything that has a state."""

    def __init__(self, folder: Path, fit: Callable, make_tuner: Callable, make_data: Callable, **options: Any) -> None:
        data_options = options.pop("data", {})
        checkpoints, plugin = folder / "checkpoints", options.pop("plugin", DurableIO())
        extra = options.pop("callbacks", [])
        self.history, self.recorder = History(folder / "history.jsonl"), Recorder()
        self.stopper = EarlyStopping("val/loss", patience=options.pop("patience", 2), min_delta=0.3, strict=False)
        self.best = Checkpoint(
            checkpoints, filename="best", monitor="val/loss", save_weights_only=True, enable_version_counter=False,
            save_on_train_epoch_end=False,
        )  # fmt: skip
        self.tuner: InstructionTuner = make_tuner()
        torch.manual_seed(5), np.random.seed(5), random.seed(5)
        settings = {
            "max_epochs": 3, "limit_val_batches": 1.0, "val_check_interval": 2, "plugins": [plugin],
            "enable_checkpointing": True, **options,
        }  # fmt: skip
        folder.mkdir(exist_ok=True)
        callbacks = [self.history, self.recorder, self.stopper, *extra, self.best, LastCheckpoint(str(checkpoints))]
        try:
            self.trainer: Trainer = fit(self.tuner, make_data(**data_options), *callbacks, **settings)
        except SystemExit:
            self.trainer = self.tuner.trainer

    def outcome(self) -> dict[str, Any]:
        rows = [json.loads(line) for line in self.history.path.read_text().splitlines()]
        rows = [{k: v for k, v in row.items() if k != "tokens_per_s"} for row in rows]
        return {
            "rows": rows,
            "patience": (self.stopper.wait_count, float(self.stopper.best_score), self.stopper.stopped_epoch),
            "best": float(self.best.best_model_score),
            "best weights": {k: v.sum().item() for k, v in torch.load(self.best.best_model_path)["state_dict"].items()},
            "weights": {k: v.double().sum().item() for k, v in self.tuner.state_dict().items()},
            "tokens": self.tuner.tokens_seen,
            "step": self.trainer.global_step,
        }


CASES = {
    "padded": {},
    "packed by budget, accumulated": {
        "data": {"layout": "packed", "grouping": "best_fit", "shared_prefix": True, "max_tokens": 100},
        "accumulate_grad_batches": 3, "val_check_interval": 2,
    },
    "a validation at the end of some epochs": {"val_check_interval": 1.0, "check_val_every_n_epoch": 2},
    "ended by steps": {"max_steps": 8, "data": {"grouping": "length", "batch_size": 5}},
    "workers": {"data": {"n_workers": 1}, "max_epochs": 2},
}  # fmt: skip


QUICK_CASES = ("packed by budget, accumulated", "ended by steps")


@pytest.mark.parametrize("case", [c if c in QUICK_CASES else pytest.param(c, marks=pytest.mark.slow) for c in CASES])
def test_from_every_checkpoint_of_a_run(
    case: str, tmp_path: Path, fit: Callable, make_tuner: Callable, make_data: Callable
) -> None:
    """Trap 15. A kill loses what came after a checkpoint; from each of them the same run comes out."""
    keep = KeepAll(tmp_path)
    whole = Run(tmp_path / "whole", fit, make_tuner, make_data, plugin=keep, **CASES[case])
    wanted = whole.outcome()
    assert keep.n >= 2
    for n in range(keep.n if case != "workers" else 2):
        folder = tmp_path / f"kill-{n}"
        with (folder / "history.jsonl").open("a") as file:
            file.write('{"step": 99, "train/lo')  # what a kill leaves
        rest = Run(folder, fit, make_tuner, make_data, ckpt_path=folder / "checkpoints" / "last.ckpt", **CASES[case])
        found = rest.outcome()
        for name in ("rows", "patience", "best", "best weights", "weights", "tokens", "step"):
            assert found[name] == wanted[name], (n, name)
        n_rest = len(rest.recorder.seen)
        assert rest.recorder.seen == whole.recorder.seen[len(whole.recorder.seen) - n_rest :], n


@pytest.mark.parametrize(
    ("n_accumulated", "interval"), [(2, 4), *(pytest.param(1, n, marks=pytest.mark.slow) for n in (4, 1.0))]
)
def test_a_run_that_ended_with_an_epoch_is_extended(
    n_accumulated: int, interval: float, tmp_path: Path, fit: Callable, make_tuner: Callable, make_data: Callable
) -> None:
    """Its last validation, which the interval does not ask for, is no reason to train a batch of that epoch again."""

    def run(name: str, **more: Any) -> Run:
        options = {"accumulate_grad_batches": n_accumulated, "val_check_interval": interval, "patience": 9, **more}
        data, callbacks = {"batch_size": 4}, [ValidateAtEnd()]
        return Run(tmp_path / name, fit, make_tuner, make_data, callbacks=callbacks, data=data, **options)

    whole, first = run("whole", max_epochs=2), run("first", max_epochs=1)
    rest = run("rest", max_epochs=2, ckpt_path=tmp_path / "first" / "checkpoints" / "last.ckpt")
    assert [*first.recorder.seen, *rest.recorder.seen] == whole.recorder.seen
    assert rest.outcome()["weights"] == whole.outcome()["weights"]


@pytest.mark.slow
@pytest.mark.parametrize("interval", [2, 5])
def test_resumed_at_the_end_of_one_epoch_after_another(
    interval: int, tmp_path: Path, fit: Callable, make_tuner: Callable, make_data: Callable
) -> None:
    """Trap 15 for a run that is killed again and again: it resumes where each epoch ended, and repeats none."""
    options = {**CASES["packed by budget, accumulated"], "val_check_interval": interval, "max_epochs": 5}

    def train(name: str, folder: Path, **more: Any) -> tuple[Run, list[Path]]:
        (tmp_path / name).mkdir()
        keep = KeepAll(tmp_path / name)
        run = Run(folder, fit, make_tuner, make_data, plugin=keep, patience=9, **options, **more)
        return run, [tmp_path / name / f"kill-{n}" for n in range(keep.n)]

    def progress(folder: Path) -> tuple[int, Any, Any]:
        saved = torch.load(folder / "checkpoints" / "last.ckpt")
        return saved["global_step"], saved["loops"]["fit_loop"]["epoch_progress"], saved["InstructionData"]

    whole, kills = train("whole", tmp_path / "run")
    n_batches = whole.trainer.num_training_batches
    wanted = {progress(kill)[0]: progress(kill) for kill in kills}
    while kills:  # each run is killed at the end of its first epoch, if it has not made its last step
        at_end = [kill for kill in kills if progress(kill)[2]["n_yielded"] == n_batches]
        if not at_end or progress(at_end[0])[0] == whole.trainer.global_step:
            break
        step, name = progress(at_end[0])[0], f"from step {progress(at_end[0])[0]}"
        last = at_end[0] / "checkpoints" / "last.ckpt"
        run, kills = train(name, at_end[0], ckpt_path=last)
        assert run.outcome() == whole.outcome(), name
        kills = [kill for kill in kills if progress(kill)[0] > step]
        assert [progress(kill) for kill in kills] == [wanted[progress(kill)[0]] for kill in kills], name
    assert step > 2 * whole.trainer.global_step // options["max_epochs"], "fewer than three resumes"


class Signal(Callback):
    """Sends this process a signal at some batch."""

    def __init__(self, number: int, at_batch: int, phase: str = "train") -> None:
        self.number, self.left, self.phase = number, at_batch, phase

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._count("train")

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._count("val")

    def _count(self, phase: str) -> None:
        if phase == self.phase:
            if self.left == 0:
                os.kill(os.getpid(), self.number)
            self.left -= 1


@pytest.mark.parametrize(
    ("number", "accumulate"),
    [
        pytest.param(number, accumulate, marks=[] if (number, accumulate) == QUICK_SIGNAL else pytest.mark.slow)
        for number in SIGNALS
        for accumulate in (1, 3)
    ],
)
def test_a_signal_ends_after_the_step_and_loses_nothing(
    number: signal.Signals, accumulate: int, tmp_path: Path, fit: Callable, make_tuner: Callable, make_data: Callable
) -> None:
    options = {
        "accumulate_grad_batches": accumulate,
        "data": {"batch_size": 4},
        "val_check_interval": 4,
        "max_epochs": 2,
    }
    wanted = Run(tmp_path / "whole", fit, make_tuner, make_data, **options).outcome()
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)}
    for moment in ((1, "train"), (3, "train"), (5, "train"), (1, "val")):
        folder = tmp_path / f"{moment}"
        first = Run(folder, fit, make_tuner, make_data, callbacks=[Signal(number, *moment)], **options)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        assert first.trainer.interrupted and first.trainer.global_step <= wanted["step"]
        assert {n: signal.getsignal(n) for n in before} == before
        last = folder / "checkpoints" / "last.ckpt"
        found = Run(folder, fit, make_tuner, make_data, ckpt_path=last, **options).outcome()
        assert found == wanted, moment


@pytest.mark.parametrize("kind", ["mps", "cuda"])
def test_the_random_state_of_a_gpu_comes_back(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    module, restored = torch.get_device_module(kind), []
    monkeypatch.setattr(last_checkpoint, "best_device", lambda: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)
    monkeypatch.setattr(module, "get_rng_state", lambda: torch.tensor([7]))
    monkeypatch.setattr(module, "set_rng_state", restored.append)
    set_random_state(random_state())
    set_random_state({**random_state(), kind: [torch.tensor([5]), torch.tensor([6])]})  # as written earlier: of all
    set_random_state({**random_state(), kind: []})
    assert [int(state) for state in restored] == [7, 6]


def test_random_states_come_back() -> None:
    state = random_state()
    first = (torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)], np.random.randn())
    set_random_state(state)
    again = (torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)], np.random.randn())
    assert first == again


@pytest.mark.parametrize("of_this_rank", [False, True])
def test_every_rank_asks_behind_a_validation_whether_one_got_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_this_rank: bool
) -> None:
    """A rank that asked alone would wait for the others, which have gone on."""
    asked: list[bool] = []
    strategy = SimpleNamespace(reduce_boolean_decision=lambda own, all: asked.append(own) or True)
    trainer: Any = SimpleNamespace(
        world_size=2, strategy=strategy, sanity_checking=False, state=SimpleNamespace(fn=TrainerFn.FITTING),
        global_step=4, fast_dev_run=True, accumulate_grad_batches=1,
    )  # fmt: skip
    last = LastCheckpoint(str(tmp_path))
    last._end_requested = of_this_rank
    monkeypatch.setattr(last_checkpoint, "step_is_complete", lambda trainer: True)
    with pytest.raises(KeyboardInterrupt):
        last.on_validation_end(trainer, None)  # type: ignore[arg-type]
    assert asked == [of_this_rank]
