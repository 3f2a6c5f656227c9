"""A cache of a model's answers on disk, so that an interrupted run resumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class AnswerCache:
    """Answers by request in a file of JSON lines, written before `add` returns; without a path in memory only.

    A truncated line, as a killed process leaves it, is ignored.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._answers: dict[str, Any] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    key, answer = json.loads(line)
                except ValueError:
                    continue
                self._answers[key] = answer

    def get(self, *request: Any) -> Any:
        """The cached answer to a request, None where there is none."""
        return self._answers.get(_key(request))

    def add(self, answers: Iterable[tuple[tuple[Any, ...], Any]]) -> None:
        """Store pairs of request and answer."""
        new = {_key(request): answer for request, answer in answers}
        self._answers |= new
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"\n{json.dumps([key, answer])}" for key, answer in new.items())


def _key(request: tuple[Any, ...]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:32]
