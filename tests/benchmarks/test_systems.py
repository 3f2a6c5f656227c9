"""A row of the training benchmark is what the program runs: it is measured in a fresh process, on a few records."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "row", "figure"),
    [("training", "ours packed+prefix fp32", "examples_per_s"), ("generation", "ours fp32", "tokens_per_s")],
)
def test_our_own_row_is_measured(module: str, row: str, figure: str, tmp_path: Path) -> None:
    records = [{"instruction": f"Say {n}.", "input": "", "output": f"{n}"} for n in range(40)]
    (tmp_path / "records.json").write_text(json.dumps(records))
    steps = ["--steps", "1", "--warm-up", "1"] if module == "training" else []
    command = [sys.executable, "-m", f"benchmarks.{module}", "--data", str(tmp_path / "records.json")]
    done = subprocess.run([*command, *steps, "--system", row], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.split("RESULT ")[1])[figure] > 0
