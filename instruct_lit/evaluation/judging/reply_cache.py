"""A cache of judges' replies on disk: a question is paid for once."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from instruct_lit.errors import JudgeError


@dataclass(frozen=True)
class Reply:
    """An endpoint's reply: its text, the tokens of prompt and reply (0 where not reported), and its duration."""

    text: str
    n_prompt_tokens: int = 0
    n_reply_tokens: int = 0
    seconds: float = 0.0


class ReplyCache:
    """A table of replies in one SQLite file, which several processes may share; each reply is committed at once.

    The key is a hash of everything that a reply depends on: model, settings and messages.

    Raises: JudgeError when the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=60, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error
        try:
            self._do("PRAGMA journal_mode=WAL")
            self._do("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, model TEXT, reply TEXT)")
        except JudgeError:
            self.close()
            raise

    def __enter__(self) -> ReplyCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the cache cannot be used any more."""
        self._connection.close()

    @staticmethod
    def key(identity: Mapping[str, Any], messages: list[dict[str, str]]) -> str:
        """The key of a conversation with an endpoint of this identity."""
        return hashlib.sha256(json.dumps([dict(identity), messages], sort_keys=True).encode()).hexdigest()

    def get(self, key: str) -> Reply | None:
        """The cached reply, None where there is none."""
        row = self._do("SELECT reply FROM replies WHERE key = ?", key)
        return Reply(**json.loads(row[0])) if row else None

    def put(self, key: str, model: str, reply: Reply) -> None:
        """Store a reply."""
        self._do("INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", key, model, json.dumps(asdict(reply)))

    def mean_seconds(self, model: str) -> float | None:
        """The mean duration of a model's cached replies; None without any."""
        return self._do("SELECT AVG(json_extract(reply, '$.seconds')) FROM replies WHERE model = ?", model)[0]

    def _do(self, statement: str, *values: str) -> Any:
        """The first row of a statement's result."""
        try:
            return self._connection.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> JudgeError:
        return JudgeError(f"{self.path}: the cache of replies cannot be used ({error}); free disk space or delete it")
