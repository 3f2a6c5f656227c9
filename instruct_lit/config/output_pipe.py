"""An output whose reader has ended (`train | head -1`), or whose encoding lacks a character, does not end a run."""

import io
import os
import stat
import sys
from typing import Any


class _Pipe(io.FileIO):
    """A pipe that becomes the null device when its reader has ended."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return len(data)


def survive_readers() -> None:
    """Let the standard output survive characters that its encoding lacks and, where it is a pipe, its reader."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if not stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode):
            return
    except (OSError, ValueError, AttributeError):  # closed, or replaced
        return
    sys.stdout.flush()
    raw = _Pipe(sys.stdout.fileno(), "w", closefd=False)
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), encoding=sys.stdout.encoding, errors="backslashreplace")
