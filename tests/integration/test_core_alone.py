"""The core alone: with every satellite's folder and conf groups deleted, a training still does everything of a run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_architecture import PACKAGE, SATELLITES


@pytest.fixture
def core_alone(tmp_path: Path) -> Path:
    """A copy of the package and `conf/` without satellites."""
    ignored = shutil.ignore_patterns("__pycache__", *SATELLITES)
    shutil.copytree(PACKAGE, tmp_path / "instruct_lit", ignore=ignored)
    shutil.copytree(PACKAGE.parent / "conf", tmp_path / "conf")
    shutil.copytree(PACKAGE.parent / "hydra_plugins", tmp_path / "hydra_plugins")
    shutil.copy(PACKAGE.parent / "pyproject.toml", tmp_path)
    for path in (tmp_path / "conf").glob("*/*.yaml"):
        if path.read_text().startswith("# satellite:"):
            path.unlink()
            if not list(path.parent.iterdir()):
                path.parent.rmdir()
    return tmp_path


@pytest.mark.slow
def test_a_training_without_satellites(core_alone: Path) -> None:
    records = [{"instruction": f"Repeat {n}.", "input": "", "output": f"{n}"} for n in range(60)]
    (core_alone / "records.json").write_text(json.dumps(records))
    small = [
        "model.n_layers=1", "model.d_model=32", "model.n_heads=2", "model.context_length=64", "trainer.max_epochs=8",
        "optimizer.lr=0.1", "callbacks.early_stopping.patience=1", "trainer.accelerator=cpu", "n_test_responses=2",
        "generation.max_new_tokens=4", "hydra.run.dir=run",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(core_alone), "INSTRUCT_LIT_CACHE": str(core_alone / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "instruct_lit.train", "model=gpt2", "model.pretrained=false", "data=files",
         "data.path=records.json", *small],
        capture_output=True, text=True, timeout=280, cwd=core_alone, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr, done.stderr
    run = core_alone / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["stopped_early"] and metrics["test/loss"] > 0
    for name in ("responses.jsonl", "history.jsonl", "bundle/model.safetensors", "bundle/config.json"):
        assert (run / name).is_file(), name
    asked = "import instruct_lit; print(repr(instruct_lit.ask(instruct_lit.open_model('run'), 'Repeat 1.')))"
    answered = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, timeout=120, cwd=core_alone, env=environment
    )
    assert answered.returncode == 0 and answered.stdout.strip(), answered.stderr[-3000:]
