"""How soon something happens after the command: the help, and the first training step of `make train`.

    python -m benchmarks.startup
    python -m benchmarks.startup model=hf model.path=<folder> data=files data.path=<file>

With overrides it is the first step of that run alone, once.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from benchmarks import common

TRAIN = [sys.executable, "-m", "instruct_lit.train"]


def help_s() -> float:
    """Seconds that `--help` takes."""
    start = time.perf_counter()
    subprocess.run([*TRAIN, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def first_step_s(overrides: Sequence[str] = ()) -> float:
    """Seconds from the command to the first training step's row in the history, the base's validation before it included."""
    with tempfile.TemporaryDirectory() as folder:
        history = Path(folder) / "history.jsonl"
        start = time.perf_counter()
        command = [*TRAIN, f"hydra.run.dir={folder}", "trainer.log_every_n_steps=1", *overrides]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
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
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*", help="of the run")
    args = parser.parse_args()
    if args.overrides:
        common.report({"first_step_s": first_step_s(args.overrides)})
        return
    rounds = args.rounds
    measures: dict[str, Callable[[], float]] = {"train --help": help_s, "first training step of train": first_step_s}
    found = [{name: measure() for name, measure in measures.items()} for _ in range(rounds)]
    for name in measures:
        times = [row[name] for row in found]
        print(f"{name}: {median(times):.2f} s (median of {rounds}, at most {max(times):.2f})")


if __name__ == "__main__":
    main()
