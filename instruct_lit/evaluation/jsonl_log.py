"""A file of JSON lines that several programs append to, and of which a crash loses at most the line being written."""

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from instruct_lit.errors import DataError


class JsonlLog:
    """Appended records of one kind; for errors `key` is the option that names the file, `kind` what a record is.

    Raises: DataError where the file cannot be written.
    """

    def __init__(self, path: Path, key: str, kind: str) -> None:
        self.path, self.key, self.kind = path, key, kind
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise DataError(f"{key}={path}: not writable ({error.strerror}); choose another file") from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record, which is on the disk when this returns; a line that a crash has cut off stays on its own."""
        # A lone surrogate, which UTF-8 does not have, stays an escape of JSON.
        line = json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
        try:
            with self.path.open("ab+", buffering=0) as file:
                if file.seek(0, os.SEEK_END):
                    file.seek(-1, os.SEEK_END)
                    line = line if file.read(1) == b"\n" else b"\n" + line
                if os.write(file.fileno(), line) < len(line):  # one call: other programs' lines are not mixed in
                    raise OSError(errno.ENOSPC, "the disk is full")
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(f"{self.key}={self.path}: {error.strerror}; the {self.kind} was not saved") from error

    def read(self) -> list[dict[str, Any]]:
        """All records; lines that are not JSON mappings, such as incomplete ones, are skipped.

        Raises: DataError where the file cannot be read.
        """
        try:
            lines = self.path.read_bytes().split(b"\n")
        except OSError as error:
            raise DataError(f"{self.key}={self.path}: cannot be read ({error.strerror})") from error
        return [record for record in readable(lines) if isinstance(record, dict)]


def readable(lines: Iterable[str | bytes]) -> Iterator[Any]:
    """The JSON values of lines; invalid lines are skipped, since a killed process leaves a part of one."""
    for line in lines:
        with suppress(ValueError, RecursionError):
            yield json.loads(line)
