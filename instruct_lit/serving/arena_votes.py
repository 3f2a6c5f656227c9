"""Votes on disk: one JSON line each, appended, so that a crash can lose at most the vote that is being written."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instruct_lit.errors import DataError
from instruct_lit.evaluation.ratings import WINNERS, Battle, model_name


class VoteFile:
    """A file of votes to which several programs may append."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise DataError(f"votes={path}: not writable ({error.strerror}); choose another file") from error

    def append(self, vote: Mapping[str, Any]) -> None:
        """Add a vote, which is on the disk when this returns; a line that a crash has cut off stays on its own."""
        # A lone surrogate, which UTF-8 does not have, stays an escape of JSON.
        line = json.dumps(vote, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
        try:
            with self.path.open("ab+", buffering=0) as file:
                if file.seek(0, os.SEEK_END):
                    file.seek(-1, os.SEEK_END)
                    line = line if file.read(1) == b"\n" else b"\n" + line
                if os.write(file.fileno(), line) < len(line):  # one call: other programs' lines are not mixed in
                    raise OSError(errno.ENOSPC, "the disk is full")
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(f"votes={self.path}: {error.strerror}; the vote was not saved") from error

    def read(self) -> list[dict[str, Any]]:
        """All votes between two models; other lines, incomplete ones and such that cannot be read, are skipped.

        Raises: DataError where the file cannot be read.
        """
        try:
            lines = self.path.read_bytes().split(b"\n")
        except OSError as error:
            raise DataError(f"votes={self.path}: cannot be read ({error.strerror})") from error
        votes = []
        for line in lines:
            try:
                vote = json.loads(line)
                a, b, winner = vote["model_a"], vote["model_b"], vote["winner"]
            except (ValueError, RecursionError, KeyError, TypeError):
                continue
            if winner in WINNERS and isinstance(a, str) and isinstance(b, str) and a != b:
                votes.append(vote)
        return votes

    def battles(self) -> list[Battle]:
        """The votes as battles, in the order in which they were cast."""
        return [
            Battle(model_name(vote["model_a"]), model_name(vote["model_b"]), vote["winner"]) for vote in self.read()
        ]
