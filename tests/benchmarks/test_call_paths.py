"""From a record to the backward pass of its loss: few enough files and functions to be read."""

import subprocess
import sys
from pathlib import Path


def test_a_record_reaches_its_backward_pass_in_few_files_and_functions() -> None:
    command = [sys.executable, "-m", "benchmarks.call_paths", "--names", "record"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("record, core alone: ")
