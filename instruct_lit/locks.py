"""Locks between processes: files that one process holds while it lives, on every operating system (`filelock`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_HELD: list[FileLock] = []  # for the rest of the process: a lock that is collected is released


@contextmanager
def exclusive(path: Path, refusal: Exception, timeout_s: float = 0) -> Iterator[None]:
    """Hold the lock file `path`, which is created, and release it at the end; the file stays.

    Child processes do not inherit the lock. Raises: `refusal` when another process still holds it after `timeout_s`.
    """
    lock = _acquire(path, refusal, timeout_s)
    try:
        yield
    finally:
        lock.release()


def hold_until_exit(path: Path, refusal: Exception, timeout_s: float = 0) -> None:
    """Hold the lock file `path` until this process ends, in whatever way. Raises: `refusal`, as `exclusive` does."""
    _HELD.append(_acquire(path, refusal, timeout_s))


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file `path`; a file that does not exist is not created."""
    if not path.is_file():
        return False
    try:
        with exclusive(path, BlockingIOError()):
            return False
    except BlockingIOError:
        return True


def _acquire(path: Path, refusal: Exception, timeout_s: float) -> FileLock:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=timeout_s, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise refusal from error
    return lock
