"""From a record to the backward pass of its loss, and from a request to its answer: few enough files and functions."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("path", ["record", "request"])
@pytest.mark.slow
def test_a_path_is_short_enough_to_be_read(path: str) -> None:
    if path == "request":
        pytest.importorskip("fastapi")
        pytest.importorskip("uvicorn")
    command = [sys.executable, "-m", "benchmarks.call_paths", "--alone", "--names", path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{path}, core alone: ")
