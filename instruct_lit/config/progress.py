"""Output of commands without a terminal: progress as plain lines, results apart from everything else, and pipes.

A reader that has ended (`train | head -1`), or an encoding that lacks a character, does not end a run.
"""

import io
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

from instruct_lit.config.satellites import has_satellite

INTERVAL_S = 15.0
_BAR = re.compile(r"\|[^|]*\|")
_STARTS = re.compile(r" 0(/|\w* \[)")  # of a bar, with and without its length
_UP = "\x1b[A"  # tqdm moves between the lines of several bars


@contextmanager
def output_streams(progress: str) -> Iterator[None]:
    """Write progress as `progress` selects, and to a file or a pipe only results (`reports.tables`) on standard output.

    Args:
        progress: bar, lines, none, or auto: bars where the standard error is a terminal that can redraw a line.
    """
    terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    bars = progress == "bar" or (progress == "auto" and terminal)
    lines = None if bars else ProgressLines(sys.stderr, shown=progress != "none")
    with ExitStack() as stack:
        if lines is not None:
            stack.callback(lines.end)
            stack.enter_context(redirect_stderr(lines))  # type: ignore[type-var]
        if lines is not None or not sys.stdout.isatty():  # on a terminal the debugger edits its lines
            if has_satellite("reports"):
                from instruct_lit.reports import tables

                stack.callback(setattr, tables, "results", tables.results)
                tables.results = sys.stdout if lines is None else Results(sys.stdout, lines)  # type: ignore[assignment]
            stack.enter_context(redirect_stdout(sys.stderr))
        yield


class ProgressLines(io.TextIOBase):
    """A stream on which the bars of tqdm, whoever draws them, become lines: one per interval, and each bar's last.

    A bar that removes itself at its end leaves no last line. Other text passes unchanged.
    """

    def __init__(self, stream: TextIO, shown: bool = True) -> None:
        self._stream, self._shown = stream, shown
        self._last = time.monotonic()
        self._pending = ""  # the last state of a bar, which may still change
        self._written = ""  # the last state that became a line
        self._after_bar = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._stream.fileno()

    def flush(self) -> None:
        self._stream.flush()

    def write(self, text: str) -> int:
        if "\r" in text or _UP in text or (self._after_bar and not text.strip("\n")):
            self._after_bar = True
            for state in text.replace(_UP, "").split("\r")[1:]:
                self._show(" ".join(_BAR.sub(" ", state).split()))
        else:
            if "100%" in self._pending:
                self.end()
            self._after_bar = False
            self._stream.write(text)
        return len(text)

    def end(self) -> None:
        """Write the last line of a bar."""
        if self._pending not in ("", self._written) and self._shown:
            self._written = self._pending
            line = self._pending.replace(" 0% ", " ") if "/?" in self._pending else self._pending  # without a length
            self._stream.write(f"{line}\n")
            self._stream.flush()
        self._pending = ""

    def _show(self, state: str) -> None:
        starts = _STARTS.search(state) is not None
        if state and (starts or ("100%" in self._pending and _title(self._pending) != _title(state))):
            self.end()  # of the bar before, also when it ended early
        if starts:
            self._last = time.monotonic()
        self._pending = "" if starts else state  # without a state the bar removes itself
        if "100%" not in self._pending and time.monotonic() - self._last >= INTERVAL_S:
            self.end()
            self._last = time.monotonic()


class Results(io.TextIOBase):
    """The standard output, in one file with the standard error behind the progress before it."""

    def __init__(self, stream: TextIO, lines: ProgressLines) -> None:
        self._stream, self._lines = stream, lines

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._lines.end()
        self._stream.write(text)
        self._stream.flush()
        return len(text)


def _title(state: str) -> str:
    return state.partition("%")[0].rpartition(" ")[0]


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
    """Let the standard output survive characters that its encoding lacks and, where it is a pipe, its reader.

    A standard stream that is closed (`>&-`) becomes the null device, so that no file of the run takes its number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (until the program ends)
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
