"""The database of an Optuna study, which the sweep and its trials share."""

from __future__ import annotations

from typing import Any

SECONDS_LOCKED = 120  # how long one of them waits while others write


def open_storage(url: str) -> Any:
    """Optuna's storage at a database's URL; an SQLite file that another process is writing is waited for."""
    import optuna

    waiting = {"connect_args": {"timeout": SECONDS_LOCKED}} if url.startswith("sqlite") else {}
    return optuna.storages.RDBStorage(url, engine_kwargs=waiting)
