"""Environments of benchmark libraries: made once, an incomplete one is never used, failures name their cause."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from instruct_lit.locks import exclusive
from instruct_lit.suites import environment
from instruct_lit.suites.environment import Environment, run_in
from instruct_lit.suites.suite import BenchmarkError

ENVIRONMENT = Environment("x", [["--no-deps", "a==1"], ["b==2"]])


class Pip:
    """Stands for venv and pip: records the commands, fails with `error`."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.error = ""

    def run(self, command: list[str], stdout: Any, **kwargs: Any) -> "subprocess.CompletedProcess[str]":
        self.commands.append(command)
        if "venv" in command:
            Path(command[-1]).mkdir(parents=True)
        failed = self.error if "pip" in command else ""
        stdout.write(failed)
        return subprocess.CompletedProcess(command, bool(failed))


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    pip = Pip()
    monkeypatch.setattr(environment.subprocess, "run", pip.run)
    return pip


def test_it_is_made_once_with_the_pins(tmp_path: Path, pip: Pip) -> None:
    python = ENVIRONMENT.python(tmp_path, tmp_path / "log")
    assert [command[5:] for command in pip.commands[1:]] == [["--quiet", "--no-deps", "a==1"], ["--quiet", "b==2"]]
    assert ENVIRONMENT.python(tmp_path, tmp_path / "log") == python and len(pip.commands) == 3
    assert Environment("x", [["b==3"]]).folder(tmp_path) != ENVIRONMENT.folder(tmp_path)


def test_an_incomplete_environment_is_made_again(tmp_path: Path, pip: Pip) -> None:
    pip.error = "WARNING: old\nERROR: No matching distribution found for a==1\n"
    with pytest.raises(
        BenchmarkError, match=r"environment of x cannot be created in .*No matching distribution found for a==1"
    ):
        ENVIRONMENT.python(tmp_path, tmp_path / "log")
    assert "No matching distribution" in (tmp_path / "log").read_text()
    pip.error = ""
    assert ENVIRONMENT.python(tmp_path, tmp_path / "log").parent.parent == ENVIRONMENT.folder(tmp_path)


def test_of_two_commands_at_once_one_makes_it_and_the_other_waits(tmp_path: Path, pip: Pip) -> None:
    found: list[Path] = []
    other = threading.Thread(target=lambda: found.append(ENVIRONMENT.python(tmp_path, tmp_path / "log of the other")))

    def run(command: list[str], stdout: Any, **kwargs: Any) -> "subprocess.CompletedProcess[str]":
        if "venv" in command:
            other.start()
        other.join(0.1)  # it must not begin meanwhile
        return pip.run(command, stdout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment.subprocess, "run", run)
        python = ENVIRONMENT.python(tmp_path, tmp_path / "log")
        other.join()
    assert found == [python] and len(pip.commands) == 3, pip.commands


def test_a_wait_without_end_names_the_folder(tmp_path: Path, pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "TIMEOUT_S", 0)
    folder = ENVIRONMENT.folder(tmp_path)
    named = pytest.raises(BenchmarkError, match=f"another process creates the environment in {folder}; wait until it")
    with exclusive(folder.with_name(f"{folder.name}.lock"), BlockingIOError()), named:
        ENVIRONMENT.python(tmp_path, tmp_path / "log")


def test_a_program_that_fails_names_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    log.write_text("ValueError: of an earlier program\n")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    program = "import os; assert 'PYTHONPATH' not in os.environ and os.environ['A'] == '1'; print('fine')"
    run_in(Path(sys.executable), ["-c", program], tmp_path, {"A": "1"}, log, "it")
    with pytest.raises(
        BenchmarkError, match=r"^it failed: KeyError: 'first'; finally RuntimeError: second\n  its whole output"
    ):
        run_in(
            Path(sys.executable), ["-c", "try:\n {}['first']\nexcept KeyError as e: raise RuntimeError('second') from e"],
            tmp_path, {}, log, "it",
        )  # fmt: skip
    assert "fine" in log.read_text()


@pytest.mark.slow
def test_a_real_one(tmp_path: Path) -> None:
    python = Environment("small", [["termcolor==3.3.0"]]).python(tmp_path, tmp_path / "log")
    run_in(python, ["-c", "import termcolor"], tmp_path, {}, tmp_path / "log", "small")
