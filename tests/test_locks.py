"""A lock is held by one process, and released when that process ends in whatever way."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from instruct_lit.locks import exclusive, is_locked

REFUSAL = ValueError("in use")


def test_a_second_holder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.lock"
    assert not is_locked(path) and not path.parent.exists()
    with exclusive(path, REFUSAL):
        assert is_locked(path)
        with pytest.raises(ValueError, match="in use"), exclusive(path, REFUSAL, timeout_s=0.1):
            pass
    assert not is_locked(path)


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    program = (
        "import sys, time; from pathlib import Path; from instruct_lit.locks import hold_until_exit\n"
        "hold_until_exit(Path(sys.argv[1]), ValueError()); print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert is_locked(path)
    finally:
        process.kill()
        process.communicate()
    deadline = time.monotonic() + 5
    while is_locked(path) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_locked(path)
