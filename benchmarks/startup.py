"""How soon something happens after the command: the help, and the first training step of `make train`.

python -m benchmarks.startup
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from statistics import median

TRAIN = [sys.executable, "-m", "instruct_lit.train"]


def help_s() -> float:
    """Seconds that `--help` takes."""
    start = time.perf_counter()
    subprocess.run([*TRAIN, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def first_step_s() -> float:
    """Seconds from the command to the first training step's row in the history, the base's validation before it included."""
    with tempfile.TemporaryDirectory() as folder:
        history = Path(folder) / "history.jsonl"
        start = time.perf_counter()
        command = [*TRAIN, f"hydra.run.dir={folder}", "trainer.log_every_n_steps=1"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not history.exists() or '"train/loss"' not in history.read_text():
                assert process.poll() is None, "the run ended before its first step"
                time.sleep(0.01)
            return time.perf_counter() - start
        finally:
            process.kill()
            process.wait()


def main() -> None:
    """Measure in turn and print medians."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    measures: dict[str, Callable[[], float]] = {"train --help": help_s, "first training step of train": first_step_s}
    found = [{name: measure() for name, measure in measures.items()} for _ in range(rounds)]
    for name in measures:
        times = [row[name] for row in found]
        print(f"{name}: {median(times):.2f} s (median of {rounds}, at most {max(times):.2f})")


if __name__ == "__main__":
    main()
