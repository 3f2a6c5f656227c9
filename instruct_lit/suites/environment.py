"""Virtual environments of benchmark libraries whose dependencies conflict with ours; made once and cached."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from instruct_lit.locks import exclusive
from instruct_lit.suites.suite import BenchmarkError

MARK = "complete"
TIMEOUT_S = 3600  # for another process to create the environment


@dataclass(frozen=True)
class Environment:
    """A name, and the arguments of one or more calls of `pip install`, each with pinned versions."""

    name: str
    installs: Sequence[Sequence[str]]

    def folder(self, cache: Path) -> Path:
        """The folder of these versions in the cache."""
        versions = repr((sys.version_info[:2], [list(install) for install in self.installs]))
        return cache / "environments" / f"{self.name}-{hashlib.sha256(versions.encode()).hexdigest()[:8]}"

    def python(self, cache: Path, log: Path) -> Path:
        """The interpreter of the environment, which is made where it is missing or incomplete.

        Raises: BenchmarkError with pip's last error.
        """
        folder = self.folder(cache)
        python = folder / "bin" / "python"  # -P: a file pip.py in the current folder is not pip
        waited = BenchmarkError(f"another process creates the environment in {folder}; wait until it ends, or stop it")
        with exclusive(folder.with_name(f"{folder.name}.lock"), waited, TIMEOUT_S):
            if not (folder / MARK).exists():
                print(f"creating the environment of {self.name} in {folder}, once; this can take minutes", flush=True)
                shutil.rmtree(folder, ignore_errors=True)
                self._call([sys.executable, "-P", "-m", "venv", str(folder)], log, folder)
                for install in self.installs:
                    self._call([str(python), "-P", "-m", "pip", "install", "--quiet", *install], log, folder)
                (folder / MARK).touch()
        return python

    def _call(self, command: Sequence[str], log: Path, folder: Path) -> None:
        if (output := _failed(command, log)) is not None:
            lines = [line for line in output.strip().splitlines() if "WARNING" not in line]
            raise BenchmarkError(
                f"the environment of {self.name} cannot be created in {folder}: {(lines or ['no message'])[-1]}. It "
                f"needs PyPI or an index that pip is configured for; pip's output is in {log}"
            )


def run_in(
    python: Path, arguments: Sequence[str], cwd: Path, variables: Mapping[str, str], log: Path, what: str
) -> None:
    """Run a program of an environment, its output appended to `log`.

    Raises: BenchmarkError with its first and last error, or its last line, when it fails.
    """
    if (output := _failed([str(python), *arguments], log, cwd, variables)) is not None:
        lines = [line.strip()[:300] for line in output.splitlines() if line.strip()] or ["it exited without output"]
        errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Timeout|Refused)\b", line)] or lines[-1:]
        cause = "; finally ".join(dict.fromkeys((errors[0], errors[-1])))
        raise BenchmarkError(f"{what} failed: {cause}\n  its whole output is in {log}")


def _failed(
    command: Sequence[str], log: Path, cwd: Path | None = None, variables: Mapping[str, str] | None = None
) -> str | None:
    """Run a command, its output appended to `log`; the output of one that fails."""
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        start, ours = log.stat().st_size, ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")  # which show our packages
        own = {name: value for name, value in os.environ.items() if name not in ours} | dict(variables or {})
        done = subprocess.run(command, cwd=cwd, env=own, stdout=file, stderr=subprocess.STDOUT)
    return log.read_bytes()[start:].decode(errors="replace") if done.returncode else None
