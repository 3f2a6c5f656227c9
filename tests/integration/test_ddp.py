"""Two processes are one: losses, weights, metrics and generated answers of the whole command."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

FILES = (
    "metrics.json",
    "responses.jsonl",
    "history.jsonl",
    "report.html",
    "bundle",
    "checkpoints",
    ".hydra/config.yaml",
)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(command: Callable, small: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one` process with batches of 8, and `two` with batches of 4; the numbers of examples do not divide."""
    folder = tmp_path_factory.mktemp("ddp")
    options = (*small, "trainer.max_epochs=2", "data.split={train:41,val:9,test:7}", "trainer.accelerator=cpu",
               "trainer.precision=32-true", "generation=sample", "generation.max_new_tokens=6")  # fmt: skip
    command("train", *options, "hydra.run.dir=one", cwd=folder)
    done = command("train", *options, "trainer=ddp_cpu", "data.batch_size=4", "hydra.run.dir=two", cwd=folder)
    (folder / "stdout").write_text(done.stdout)
    return folder


def test_losses_metrics_and_weights_are_those_of_one_process(runs: Path) -> None:
    one, two = (rows_of(runs / name / "history.jsonl") for name in ("one", "two"))
    assert len(one) == len(two) > 8
    for found, wanted in zip(two, one, strict=True):
        for name in {"step", "tokens", "train/loss", "val/loss", "train/grad_norm", "lr"} & set(wanted):
            assert found[name] == pytest.approx(wanted[name], rel=2e-4), (wanted["step"], name)
    a, b = (json.loads((runs / name / "metrics.json").read_text()) for name in ("one", "two"))
    for name in (
        "val/loss",
        "test/loss",
        "val/bits_per_byte",
        "base/test/loss",
        "train/tokens",
        "n_steps",
        "best_step",
    ):
        assert b[name] == pytest.approx(a[name], rel=2e-4), name
    ours, theirs = (load_file(runs / name / "bundle" / "model.safetensors") for name in ("two", "one"))
    for name, weight in theirs.items():
        assert (ours[name] - weight).abs().max() < 2e-3, name


def test_every_test_example_is_answered_once_and_alike(runs: Path) -> None:
    one, two = (rows_of(runs / name / "responses.jsonl") for name in ("one", "two"))
    assert [row["id"] for row in two] == [row["id"] for row in one] and len(one) == 7
    assert [row["base_response"] for row in two] == [row["base_response"] for row in one]
    assert sum(a["response"] == b["response"] for a, b in zip(one, two, strict=True)) >= 6  # draws at a rounding's edge


def test_only_the_first_rank_writes_and_speaks_and_the_others_use_its_folder(runs: Path) -> None:
    for name in FILES:
        assert (runs / "two" / name).exists(), name
    assert sorted(p.name for p in runs.iterdir()) == ["one", "stdout", "two"]
    printed = (runs / "stdout").read_text()
    assert printed.count("data demo:") == 1 and printed.count("report.html") == 1


@pytest.mark.slow
def test_trap_18_a_trial_of_a_sweep_starts_its_ranks_and_no_sweep(
    command: Callable, small: tuple[str, ...], tmp_path: Path
) -> None:
    done = command("train", "-m", *small, "trainer=ddp_cpu", "seed=1,2", "evaluate_base=false", "trainer.max_epochs=1",
                   "hydra.sweep.dir=sweep", cwd=tmp_path)  # fmt: skip
    assert done.stdout.count(": starts") == 2
    for number in ("0", "1"):
        record = json.loads((tmp_path / "sweep" / number / "trial.json").read_text())
        assert record["status"] == "completed", record
        assert len(rows_of(tmp_path / "sweep" / number / "responses.jsonl")) == 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sweep"]


@pytest.mark.slow
def test_two_processes_go_on_where_one_stopped(
    command: Callable, small: tuple[str, ...], small_run: Path, tmp_path: Path
) -> None:
    options = (
        *small,
        f"ckpt_path={small_run}",
        "trainer.max_epochs=3",
        "evaluate_base=false",
        "trainer.precision=32-true",
    )
    command("train", *options, "hydra.run.dir=one", cwd=tmp_path)
    command("train", *options, "trainer=ddp_cpu", "data.batch_size=4", "hydra.run.dir=two", cwd=tmp_path)
    one, two = (rows_of(tmp_path / name / "history.jsonl") for name in ("one", "two"))
    assert [row["step"] for row in two] == [row["step"] for row in one]
    assert two[-1]["val/loss"] == pytest.approx(one[-1]["val/loss"], rel=1e-3)
