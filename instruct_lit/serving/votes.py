"""Votes on disk: one JSON line each, appended so that a crash can cost at most the vote that was being written."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instruct_lit.errors import DataError
from instruct_lit.suites.ratings import WINNERS, Battle


class VoteFile:
    """A file of votes that several programs may append to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise DataError(f"votes={path}: cannot be written ({error.strerror})") from error

    def append(self, vote: Mapping[str, Any]) -> None:
        """Add a vote; when this returns it is on the disk. A line that a crash left half stays alone on its line."""
        line = json.dumps(vote, ensure_ascii=False).encode() + b"\n"
        try:
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                size = os.fstat(file).st_size
                if size and os.pread(file, 1, size - 1) != b"\n":
                    line = b"\n" + line
                if os.write(file, line) < len(line):  # one call, so that no other comes between
                    raise OSError(errno.ENOSPC, "the disk is full")
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise DataError(f"votes={self.path}: {error.strerror}; the vote was not kept") from error

    def read(self) -> list[dict[str, Any]]:
        """All whole votes; a line that a crash left half is left out."""
        votes = []
        for line in self.path.read_bytes().split(b"\n"):
            try:
                vote = json.loads(line)
            except ValueError:
                continue
            if isinstance(vote, dict) and vote.get("winner") in WINNERS and {"model_a", "model_b"} <= vote.keys():
                votes.append(vote)
        return votes

    def battles(self) -> list[Battle]:
        """The votes as battles, in the order in which they were cast."""
        return [Battle(str(vote["model_a"]), str(vote["model_b"]), vote["winner"]) for vote in self.read()]
