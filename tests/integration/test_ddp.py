"""Two processes are one: losses, weights, metrics and generated answers of the whole command."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_only
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
    (folder / "stdout").write_text(done.stdout + done.stderr)
    return folder


@pytest.mark.slow
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


@pytest.mark.slow
def test_every_test_example_is_answered_once_and_alike(runs: Path) -> None:
    one, two = (rows_of(runs / name / "responses.jsonl") for name in ("one", "two"))
    assert [row["id"] for row in two] == [row["id"] for row in one] and len(one) == 7
    assert [row["base_response"] for row in two] == [row["base_response"] for row in one]
    assert sum(a["response"] == b["response"] for a, b in zip(one, two, strict=True)) >= 6  # draws at a rounding's edge


@pytest.mark.slow
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


FAILING = """
import os
from instruct_lit.errors import TrainingError
from instruct_lit.config.compose import run_command
from instruct_lit.train import train
from instruct_lit.core.training.module import InstructionTuner

step = InstructionTuner.training_step
def training_step(self, batch, batch_idx):
    if self.trainer.global_step == 2 and os.environ.get("LOCAL_RANK") == "1":
        raise TrainingError("the second process lost its data")
    return step(self, batch, batch_idx)
InstructionTuner.training_step = training_step
run_command("train", train)
"""


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job_with_its_own_error(small: tuple[str, ...], cache: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(FAILING)
    options = (*small, "trainer=ddp_cpu", "evaluate_base=false", "trainer.max_epochs=9", "hydra.run.dir=run")
    done = subprocess.run(
        [sys.executable, str(program), *options], cwd=tmp_path, capture_output=True, text=True, timeout=200,
        env={**os.environ, "INSTRUCT_LIT_CACHE": str(cache)},
    )  # fmt: skip
    assert done.returncode != 0
    assert "error: the second process lost its data" in done.stderr
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.fixture
def start_process(cache: Path, small: tuple[str, ...], tmp_path: Path) -> Callable[..., "subprocess.Popen[bytes]"]:
    """Starts one process of a job in which somebody else starts all of them, or with `module=` a starter."""

    def run(name: str, *overrides: str, starter: tuple[str, ...] = (), **variables: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, *starter, "-m", "instruct_lit.train", *small, "trainer=ddp_cpu", "data.batch_size=4"]
        with (tmp_path / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*command, *overrides], cwd=tmp_path, stdout=log, stderr=log,
                env={**os.environ, "INSTRUCT_LIT_CACHE": str(cache), **variables},
            )  # fmt: skip

    return run


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.mark.slow
def test_torchrun_and_slurm_start_the_same_run(start_process: Callable, tmp_path: Path) -> None:
    options = ("evaluate_base=false", "trainer.max_epochs=1", "trainer.precision=32-true")
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}")
    assert start_process("torchrun", *options, "hydra.run.dir=torchrun", starter=torchrun).wait(250) == 0
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
             "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "SLURM_JOB_NODELIST": "localhost",
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}  # fmt: skip
    tasks = [
        start_process("slurm", *options, "hydra.run.dir=slurm", **slurm, SLURM_PROCID=rank, SLURM_LOCALID=rank)
        for rank in "01"
    ]
    assert [task.wait(250) for task in tasks] == [0, 0], (tmp_path / "slurm.log").read_text()[-3000:]
    a, b = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("torchrun", "slurm"))
    for name in ("val/loss", "test/loss", "train/tokens", "n_steps"):
        assert a[name] == b[name], name
    for name in ("torchrun", "slurm"):
        assert len(rows_of(tmp_path / name / "responses.jsonl")) == 10
        assert (tmp_path / f"{name}.log").read_text().count("data demo:") == 1


def test_slurms_variables_are_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"JOB_ID": "7", "JOB_NAME": "train", "NTASKS": "8", "NTASKS_PER_NODE": "4", "PROCID": "5",
                        "LOCALID": "1", "NODEID": "1", "NNODES": "2"}.items():  # fmt: skip
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # is put back: a test after it would write no log
    trainer = Trainer(accelerator="cpu", devices=4, num_nodes=2, strategy="ddp", logger=False, enable_progress_bar=False,
                      enable_checkpointing=False, enable_model_summary=False)  # fmt: skip
    assert (trainer.world_size, trainer.global_rank, trainer.local_rank, trainer.node_rank) == (8, 5, 1, 1)


@pytest.mark.slow
def test_killed_under_ddp_it_goes_on_as_the_run_that_would_have_been(start_process: Callable, tmp_path: Path) -> None:
    options = ("evaluate_base=false", "trainer.max_epochs=12", "callbacks.early_stopping=null", "ckpt_path=last")
    assert start_process("whole", *options, "hydra.run.dir=whole").wait(250) == 0
    history = tmp_path / "run" / "history.jsonl"
    for victim in (0, 1):  # the first process, then the one that it started
        seen = history.stat().st_size if history.exists() else 0
        process = start_process("run", *options, "hydra.run.dir=run")
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and not (history.exists() and history.stat().st_size not in (0, seen)):
            time.sleep(0.002)
        assert process.poll() is None
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill((process.pid, int(child))[victim], signal.SIGKILL)
        assert process.wait(100) != 0
        while time.monotonic() < deadline and Path(f"/proc/{child}").exists():  # it notices that the other is gone
            time.sleep(0.05)
        assert not Path(f"/proc/{child}").exists()
    assert start_process("run", *options, "hydra.run.dir=run").wait(250) == 0, (tmp_path / "run.log").read_text()[
        -3000:
    ]
    found, wanted = (
        [{k: v for k, v in row.items() if k != "tokens_per_s"} for row in rows_of(tmp_path / name / "history.jsonl")]
        for name in ("run", "whole")
    )
    assert found == wanted
    for name in ("responses.jsonl", "bundle/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
