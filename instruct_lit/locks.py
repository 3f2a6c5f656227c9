"""Locks between processes: files that one process holds while it lives, on every operating system (`filelock`)."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

_HELD: list[Any] = []  # for the rest of the process: a lock that is collected is released


def exclusive(path: Path, refusal: Exception, timeout_s: float = 0) -> AbstractContextManager[Any]:
    """Take the lock file `path`, which is created, at once; it is released at the end of the context, the file stays.

    Child processes do not inherit the lock. Raises: `refusal` when another process still holds it after `timeout_s`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(path, timeout=timeout_s, thread_local=False).acquire()
    except Timeout as error:
        raise refusal from error


def hold_until_exit(path: Path, refusal: Exception, timeout_s: float = 0) -> None:
    """Hold the lock file `path` until this process ends, in whatever way. Raises: `refusal`, as `exclusive` does."""
    _HELD.append(exclusive(path, refusal, timeout_s))


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file `path`; a file that does not exist is not created."""
    if not path.is_file():
        return False
    try:
        with exclusive(path, BlockingIOError()):
            return False
    except BlockingIOError:
        return True
