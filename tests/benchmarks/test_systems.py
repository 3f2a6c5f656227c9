"""A row of the training benchmark is what the program runs: it is measured in a fresh process, on a few records."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_our_own_row_is_measured(tmp_path: Path) -> None:
    records = [{"instruction": f"Say {n}.", "input": "", "output": f"{n}"} for n in range(40)]
    (tmp_path / "records.json").write_text(json.dumps(records))
    command = [sys.executable, "-m", "benchmarks.training", "--data", str(tmp_path / "records.json"), "--steps", "1"]
    done = subprocess.run(
        [*command, "--warm-up", "1", "--system", "ours packed+prefix fp32"], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.split("RESULT ")[1])["examples_per_s"] > 0
