"""Rows of the fault table (docs/faults.md) that need a whole command: the fault is injected, the message asserted."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ALPACA = {"instruction": "Say a word.", "input": "", "output": "word"}


def write(path: Path, records: list[dict]) -> str:
    path.write_text(json.dumps(records), encoding="utf-8")
    return f"data.path={path}"


def unlike(n: int) -> list[dict]:
    return [{"instruction": f"Say number {i}.", "input": "", "output": f"number {i}"} for i in range(n)]


@pytest.fixture
def few(small: tuple[str, ...]) -> tuple[str, ...]:
    """The small run, on files and without the demo's own keys."""
    return (
        "data=files",
        *(o for o in small if not o.startswith(("data.source", "data.split"))),
        "trainer.max_epochs=1",
    )


@pytest.mark.parametrize(
    ("interval", "message"),
    [
        ("1.0", "error: train/loss is nan at step 2, on examples "),
        pytest.param("1", "error: val/loss is nan after step 1; lower", marks=pytest.mark.slow),
    ],
)
def test_a_loss_that_is_no_number_ends_the_run(
    command: Callable, small: tuple[str, ...], tmp_path: Path, interval: str, message: str
) -> None:
    done = command(
        "train", *small, "optimizer.lr=1e30", "scheduler=constant", f"trainer.val_check_interval={interval}",
        "evaluate_base=false", "hydra.run.dir=run", cwd=tmp_path, status=2,
    )  # fmt: skip
    assert message in done.stderr and "lower optimizer.lr" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("records", "overrides", "message"),
    [
        (unlike(1), ("data.split={train:1,val:1,test:1}",), "data.split"),
        (unlike(10), ("data.split={train:10,val:0,test:0}",), "data.split"),
        ([{**ALPACA, "instruction": f"word {i} " * 200} for i in range(6)], ("data.on_long=drop",), "data.on_long"),
        ([{**ALPACA, "instruction": f"word {i} " * 200} for i in range(6)], ("data.on_long=error",), "data.max_length"),
    ],
    ids=["one example", "no validation set", "all too long, dropped", "too long, an error"],
)
def test_data_that_cannot_be_trained_on_is_refused_before_training(
    command: Callable, few: tuple[str, ...], tmp_path: Path, records: list, overrides: tuple[str, ...], message: str
) -> None:
    path = write(tmp_path / "records.json", records)
    done = command("train", *few, path, *overrides, cwd=tmp_path, status=2)
    assert "error: " in done.stderr and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "Epoch 0" not in done.stderr


def test_a_cache_folder_that_cannot_be_written_is_named(
    command: Callable, few: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    path = write(tmp_path / "records.json", unlike(20))
    done = command("train", *few, path, "paths.cache=cache", cwd=tmp_path, status=2)
    assert "cache" in done.stderr and "paths.cache" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a POSIX system")
def test_records_of_every_plane_and_of_a_megabyte(command: Callable, few: tuple[str, ...], tmp_path: Path) -> None:
    planes = [
        chr(p * 0x10000 + 0x1F00 + i) for p in range(17) for i in range(3) if not 0xD800 <= p * 0x10000 + i < 0xE000
    ]
    records = [{"instruction": f"{i} {c * 3}", "input": c, "output": c + "é"} for i, c in enumerate(planes)]
    records.append({"instruction": "m" * 2**20, "input": "", "output": "long " * 100})
    path = write(tmp_path / "records.json", records)
    done = command("train", *few, path, "data.split={train:0.6,val:0.2,test:0.2}", "hydra.run.dir=run", cwd=tmp_path)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["n_train"] + metrics["n_val"] + metrics["n_test"] + metrics.get("n_dropped", 0) >= 50
    assert metrics["test/loss"] > 0 and "long" in done.stderr


@pytest.mark.slow
def test_a_hundred_thousand_tiny_records(command: Callable, few: tuple[str, ...], tmp_path: Path) -> None:
    path = write(
        tmp_path / "records.json", [{"instruction": f"{i}", "input": "", "output": "a"} for i in range(100_000)]
    )
    command(
        "train", *few, path, "data.split={train:0.98,val:0.01,test:0.01}", "trainer.max_steps=3", "n_test_responses=4",
        "hydra.run.dir=run", cwd=tmp_path,
    )  # fmt: skip
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["n_train"] == 98_000


@pytest.mark.slow
def test_a_locale_without_utf8_writes_the_same_configuration(small: tuple[str, ...], tmp_path: Path) -> None:
    """The commands of other tests are forks of one process, whose encoding is settled."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    environment["INSTRUCT_LIT_CACHE"] = str(tmp_path / "cache")
    own = tmp_path / "own" / "experiment" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\nname: größer\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "instruct_lit.train",
        "--config-dir=own",
        "experiment=mine",
        *small,
        "trainer.max_steps=1",
    ]
    given = [*command, "hydra.run.dir=run", "evaluate_base=false", "n_test_responses=1"]
    done = subprocess.run(given, env=environment, cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "name: größer" in (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
