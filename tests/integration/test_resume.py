"""The train command killed at any moment and started again is the run that would have been."""

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Start, Started

LAYOUTS = {
    "padded": ("batching=bucketed",),
    "packed": ("batching=packed", "data.n_workers=1"),
    "accumulated": (
        "batching=packed", "batching.grouping=best_fit", "batching.max_tokens=150", "trainer.accumulate_grad_batches=3",
    ),
}  # fmt: skip


@pytest.fixture
def again(start: Start, small: tuple[str, ...], tmp_path: Path) -> Callable[..., Started]:
    """Starts the same command in the same run folder."""

    def run(name: str, *overrides: str) -> Started:
        return start("train", *small, "evaluate_base=false", "ckpt_path=last", f"hydra.run.dir={name}", *overrides,
                     cwd=tmp_path, log=tmp_path / name)  # fmt: skip

    return run


def rows_of(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "tokens_per_s"} for line in lines]


def same(found: Path, wanted: Path) -> None:
    assert rows_of(found / "history.jsonl") == rows_of(wanted / "history.jsonl")
    a, b = (json.loads((folder / "metrics.json").read_text()) for folder in (found, wanted))
    for name in ("val/loss", "test/loss", "test/exact_match", "train/tokens", "n_steps", "best_step", "stopped_early"):
        assert a[name] == b[name], name
    for name in ("responses.jsonl", "bundle/model.safetensors"):
        assert (found / name).read_bytes() == (wanted / name).read_bytes(), name


def kill_while_training(process: Started, run: Path, moment: str, chance: random.Random) -> bool:
    """Kill -9 in a checkpoint's writing, or somewhere in the steps after a sign of progress; False: it had ended."""
    history = run / "history.jsonl"
    seen = history.stat().st_size if history.exists() else 0
    wait = chance.random() * 0.6
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if moment == "write" and list((run / "checkpoints").glob(".*.part")):
            break
        if moment == "step" and history.exists() and history.stat().st_size not in (0, seen):
            time.sleep(wait)
            break
        time.sleep(0.0005)
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


@pytest.mark.slow
def test_killed_in_the_writing_of_a_checkpoint(again: Callable, tmp_path: Path) -> None:
    options = (*LAYOUTS["accumulated"], "trainer.max_epochs=4")
    assert again("whole", *options).wait(300) == 0
    assert kill_while_training(again("run", *options), tmp_path / "run", "write", random.Random(0))
    assert again("run", *options).wait(300) == 0, (tmp_path / "run.err").read_text()[-3000:]
    same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_many_times(layout: str, again: Callable, tmp_path: Path) -> None:
    """Trap 15, at least 7 kills for each of three layouts, 21 together."""
    options = (*LAYOUTS[layout], "trainer.max_epochs=40", "callbacks.early_stopping.patience=30")
    assert again("whole", *options).wait(600) == 0
    chance = random.Random(layout)
    n_kills, n_starts = 0, 0
    while True:
        moment = "write" if n_starts % 3 == 0 else "step"
        n_starts += 1
        process = again("run", *options)
        if n_kills >= 7:
            assert process.wait(600) == 0, (tmp_path / "run.err").read_text()[-3000:]
            break
        if not kill_while_training(process, tmp_path / "run", moment, chance):
            pytest.fail("the run ended before it had been killed often enough")
        n_kills += 1
    same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(
    command: Callable, small: tuple[str, ...], small_run: Path, tmp_path: Path
) -> None:
    part = tmp_path / "run" / "checkpoints" / ".last.ckpt.part"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    done = command(
        "train", *small, f"ckpt_path={small_run}", "trainer.max_epochs=3", "hydra.run.dir=run", cwd=tmp_path, status=2
    )
    assert "No space left on device" in done.stderr and "there is no checkpoint yet" in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("error:") == 1


@pytest.mark.slow
def test_a_checkpoint_of_other_data_is_refused_with_what_differs(
    command: Callable, small: tuple[str, ...], small_run: Path, tmp_path: Path
) -> None:
    done = command("train", *small, f"ckpt_path={small_run}", "data.source.n_examples=61", "template=chatml",
                   "trainer.max_epochs=3", cwd=tmp_path, status=2)  # fmt: skip
    assert "the checkpoint belongs to another run" in done.stderr
    for name in ("data: demo-", "template: alpaca-"):
        assert name in done.stderr
    assert "model:" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_slurm_signal_says_how_to_go_on(again: Callable, tmp_path: Path) -> None:
    process = again("run", "trainer.max_epochs=500", "callbacks.early_stopping=null")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(120) == 130
    assert f"interrupted; to resume, add ckpt_path={tmp_path / 'run'}" in (tmp_path / "run.err").read_text()
