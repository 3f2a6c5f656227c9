"""One trial of a sweep: a process of its own, so that a crash, a kill or a memory leak affects no other trial.

Under `--multirun` every launcher calls `run_trial` in place of the command; it starts the command again as a single
run in the trial's folder, waits for it, and records its outcome in `trial.json`.
"""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from instruct_lit.errors import ConfigError, DataError, TrialPruned, quoted
from instruct_lit.locks import exclusive, hold_until_exit, is_locked
from instruct_lit.reports.pages import write_whole
from instruct_lit.sweeps.comparable import comparable_metric

RECORD, RESULT, LOG = "trial.json", "result.json", "output.log"
SWEEP_LOCK, TRIAL_LOCK = "sweep.lock", "trial.lock"  # held by the sweep, and by the process that it starts
FOLDER_VARIABLE = "INSTRUCT_LIT_TRIAL"  # set for a process that is the trial in this folder
INTERRUPTED = 130
FINISHED = ("completed", "pruned", "failed")
_FIELDS: dict[str, Any] = {
    "command": str, "status": str, "overrides": list, "seconds": (int, float), "value": (int, float, type(None)),
    "reason": (str, type(None)),
}  # fmt: skip
_OF_THE_SWEEP = ("hydra.sweep", "hydra/sweep", "hydra.launcher", "hydra/launcher", "hydra.mode", "hydra.run.dir",
                 "hydra.searchpath")  # fmt: skip
_OF_THE_SWEEPER = "callbacks.pruning."  # what a sweeper adds to a trial beside its parameters


def run_trial(command: str, hydra: Any, metric: str | None = None, files: Sequence[str] = ()) -> float | None:
    """Run the trial that `hydra` (Hydra's own configuration) describes; return its value, NaN if it has none.

    Warns where trials are compared by a `metric` whose meaning differs between them.
    A finished trial is not run again; an interrupted one resumes from its last checkpoint. Raises: ConfigError when
    the folder belongs to a trial with other overrides, or another process runs in it.

    Args:
        files: options of the command line by which Hydra finds other configuration files.
    """
    folder, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
    record = read_record(folder)
    if record is not None and parameters(record["overrides"]) != parameters(overrides):
        raise ConfigError(
            f"{folder}: holds a trial with {' '.join(parameters(record['overrides'])) or 'no overrides'}, not with "
            f"{' '.join(parameters(overrides)) or 'none'}; choose another hydra.sweep.dir"
        )
    given = {argument.lower() for argument in sys.argv}
    swept = [o for o in parameters(overrides) if o.lower() not in given]  # in which trials differ
    name = f"trial {folder.name} ({' '.join(swept) or 'defaults'})"
    names = [override.partition("=")[0].lstrip("+") for override in swept]
    instead = comparable_metric(names, metric or "")
    monitor = comparable_metric(names, "val/loss") if command == "train" else None
    is_first = hydra.job.num == 0
    if is_first and monitor and not any(o.startswith("callbacks.best_checkpoint.") for o in overrides):
        keys = f"callbacks.best_checkpoint.monitor={monitor} callbacks.early_stopping.monitor={monitor}"
        kept = "each trial keeps the weights with the best val/loss, which covers other tokens in each"
        print(f"warning: {kept}; add {keys}", file=sys.stderr)
    if is_first and instead is not None:
        differ = "the trials differ in which tokens their loss covers, so it cannot be compared"
        print(f"warning: optimized_metric={metric}: {differ}; use optimized_metric={instead}", file=sys.stderr)
    if record is not None and record["status"] in FINISHED:
        print(f"{name}: {described(record, metric)}, already finished", flush=True)
        return _value(record)
    with locked(folder):
        print(f"{name}: {'resumes' if record else 'starts'}, log in {folder / LOG}", flush=True)
        seconds = record["seconds"] if record is not None else 0.0
        record = {"command": command, "status": "running", "overrides": overrides, "files": list(files)}
        _write(folder / RECORD, {**record, "seconds": seconds})
        start = time.perf_counter()
        status, value, reason = _in_a_process(command, folder, _arguments(command, hydra, folder, files), hydra)
        record |= {"status": status, "value": value, "reason": reason, "seconds": seconds + time.perf_counter() - start}
        _write(folder / RECORD, record)
    print(f"{name}: {described(record, metric)} ({record['seconds']:.0f} s)", flush=True)
    if status == "interrupted":
        raise KeyboardInterrupt
    return _value(record)


def _arguments(command: str, hydra: Any, folder: Path, files: Sequence[str]) -> list[str]:
    ours = [o for o in hydra.overrides.hydra if not o.lstrip("+~").startswith(_OF_THE_SWEEP)]
    resume = ["ckpt_path=last"] if command == "train" and (folder / "checkpoints").is_dir() else []
    return [*files, *hydra.overrides.task, *resume, *ours, "hydra.mode=RUN", f"hydra.run.dir={quoted(folder)}"]


def _in_a_process(command: str, folder: Path, arguments: list[str], hydra: Any) -> tuple[str, float | None, str | None]:
    """Start the trial and wait for it: (status, value, reason)."""
    (folder / RESULT).unlink(missing_ok=True)
    environment = {**_threads(hydra), **os.environ, FOLDER_VARIABLE: str(folder)}
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", f"instruct_lit.{command}", *arguments],
            stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)  # it saves, and ends
                print(f"trial {folder.name}: saves its last checkpoint", flush=True)
    if code == 0:
        value = json.loads((folder / RESULT).read_text())["value"] if (folder / RESULT).is_file() else None
        if value is not None and not math.isfinite(value):
            return "failed", None, f"the optimised metric is {value}: the training diverged"
        return "completed", value, None
    if code == INTERRUPTED:
        return "interrupted", None, "interrupted by a signal"
    if code < 0:
        return "failed", None, f"killed by {signal.Signals(-code).name}, from outside or because memory ran out"
    return "pruned" if code == TrialPruned.status else "failed", None, last_error_line(folder)


def _threads(hydra: Any) -> dict[str, str]:
    """The processor's threads divided among the trials that a launcher runs side by side."""
    n_jobs = hydra.launcher.get("n_jobs") or 1
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if n_jobs == 1:
        return {}
    share = str(max(1, n_cores // (n_jobs if n_jobs > 0 else n_cores)))
    return {name: share for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


def last_error_line(folder: Path) -> str:
    """The last error in a trial's log, else its last line."""
    lines = [line.strip() for line in (folder / LOG).read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines[-40:] if line.startswith("error: ")]
    return (errors[-1].removeprefix("error: ") if errors else lines[-1] if lines else "exited without output")[:500]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a trial's folder for the sweep in this process.

    Raises: ConfigError when another sweep holds it, or when the trial of a killed sweep still runs in it.
    """
    with exclusive(folder / SWEEP_LOCK, _in_use(folder)):
        if is_locked(folder / TRIAL_LOCK):
            raise _in_use(folder)
        yield


def is_held(folder: Path) -> bool:
    """Whether a sweep or a trial works in a trial's folder."""
    return is_locked(folder / SWEEP_LOCK) or is_locked(folder / TRIAL_LOCK)


def _in_use(folder: Path) -> ConfigError:
    return ConfigError(f"{folder}: another process runs this trial; wait until it ends, or stop it")


def follow_the_sweep() -> None:
    """In a trial: hold the own folder, and end, with a last checkpoint, when the sweep that started it has ended.

    The folder is held until this process ends. Raises: ConfigError when the trial of a killed sweep has still not ended
    after a minute.
    """
    folder = Path(os.environ[FOLDER_VARIABLE])
    hold_until_exit(folder / TRIAL_LOCK, _in_use(folder), timeout_s=60)

    def wait() -> None:
        os.read(0, 1)  # the sweep holds the other end of the standard input and writes nothing
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True, name="follow-the-sweep").start()


def write_result(value: Any) -> None:
    """In a trial: write the command's result where the sweep reads it."""
    _write(Path(os.environ[FOLDER_VARIABLE]) / RESULT, {"value": value if isinstance(value, int | float) else None})


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of the trial in a folder; None when there is none. Raises: DataError for a damaged one."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = {"value": None, "reason": None, **json.loads(path.read_bytes())}
        bad = [name for name, kind in _FIELDS.items() if not isinstance(record.get(name), kind)]
    except (TypeError, ValueError, RecursionError):
        bad = ["no JSON object"]
    if bad:
        raise DataError(f"{path}: damaged ({', '.join(bad)}); delete it: the trial resumes from its last checkpoint")
    return record


def parameters(overrides: list[str]) -> list[str]:
    """The overrides of a trial without those that a sweeper adds for its own use."""
    return sorted(o for o in overrides if not o.lstrip("+").startswith(_OF_THE_SWEEPER))


def described(record: dict[str, Any], metric: str | None) -> str:
    """The outcome of a trial in one line; without a `metric` its value is the command's result."""
    if record["status"] == "completed":
        return "completed" if record["value"] is None else f"{metric or 'result'} {record['value']:.6g}"
    status, reason = record["status"], str(record["reason"])
    return reason if reason.startswith(status) else f"{status}: {reason}"


def _value(record: dict[str, Any]) -> float | None:
    return record["value"] if record["status"] == "completed" else math.nan


def _write(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=2) + "\n")
