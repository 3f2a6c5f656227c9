"""Whole commands in processes of their own, as a person starts them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def command(cache: Path) -> Command:
    """`command("train", "seed=1", cwd=folder)` runs `python -m instruct_lit.train seed=1` there and returns its output."""

    def run(name: str, *overrides: str, cwd: Path, status: int = 0) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "INSTRUCT_LIT_CACHE": str(cache), "COLUMNS": "80", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-m", f"instruct_lit.{name}", *overrides],
            cwd=cwd, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == status, f"status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done

    return run


SMALL = (
    "data.source.n_examples=60",
    "data.split={train:40,val:10,test:10}",
    "data.batch_size=8",
    "model.pretrained=false",
    "model.path=null",
    "model.n_layers=2",
    "model.d_model=32",
    "model.context_length=96",
    "data.max_length=96",
    "generation.max_new_tokens=6",
    "callbacks.sample_answers.max_new_tokens=4",
    "trainer.log_every_n_steps=1",
)


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """Overrides that make a run of seconds."""
    return SMALL


@pytest.fixture(scope="session")
def small_run(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run: two epochs of a tiny random model on 40 demo examples."""
    folder = tmp_path_factory.mktemp("small")
    command("train", *SMALL, "trainer.max_epochs=2", "hydra.run.dir=run", cwd=folder)
    return folder / "run"
