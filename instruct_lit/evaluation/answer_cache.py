"""A cache of the answers of models and judges on disk: nothing is computed or paid for twice, and a run resumes."""

import hashlib
import json
from collections import UserDict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from instruct_lit import __version__
from instruct_lit.core.data.template import Template
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.responses import closing
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.errors import DataError
from instruct_lit.evaluation.jsonl_log import readable


class AnswerCache:
    """Answers by request in a file of JSON lines, written before `add` returns; without a path in memory only.

    A truncated line, as a killed process leaves it, is ignored. Several processes may append to one file.

    Raises: DataError when the file cannot be read or written.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text(encoding="utf-8", errors="replace") if path is not None and path.exists() else ""
        except OSError as error:
            raise self._unusable(error) from error
        pairs = (pair for pair in readable(text.splitlines()) if isinstance(pair, list) and len(pair) == 2)
        self._answers: dict[str, Any] = {str(key): answer for key, answer in pairs}

    def get(self, *request: Any) -> Any:
        """The cached answer to a request, None where there is none."""
        return self._answers.get(_key(request))

    def values(self) -> list[Any]:
        """All cached answers."""
        return list(self._answers.values())

    def add(self, answers: Iterable[tuple[tuple[Any, ...], Any]]) -> None:
        """Store pairs of request and answer."""
        new = {_key(request): answer for request, answer in answers}
        self._answers |= new
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(f"\n{json.dumps([key, answer])}" for key, answer in new.items()))
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> DataError:
        return DataError(f"{self.path}: the cache cannot be used ({error.strerror}); free disk space or delete it")


def _key(request: tuple[Any, ...]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:32]


class CachedResponses(UserDict):
    """Responses of an engine by prompt (`responses.CachedAnswers`), written to a cache as soon as they are complete."""

    def __init__(self, cache: AnswerCache, engine: Engine, settings: SamplingSettings, template: Template) -> None:
        super().__init__()
        self.cache = cache
        settings = replace(settings, stop=(*settings.stop, *closing(template)))
        self.of_engine = repr(settings), str(engine.dtype)

    def __contains__(self, prompt: Any) -> bool:
        if prompt not in self.data and (found := self.cache.get(*self._request(prompt))) is not None:
            self.data[prompt] = tuple(found)
        return prompt in self.data

    def __setitem__(self, prompt: tuple[int, ...], response: tuple[str, str | None]) -> None:
        super().__setitem__(prompt, response)
        self.cache.add([(self._request(prompt), response)])

    def _request(self, prompt: tuple[int, ...]) -> tuple[Any, ...]:
        return ("answer", __version__, list(prompt), *self.of_engine)
