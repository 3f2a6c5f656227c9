"""The database of an Optuna study, shared by the sweep and its trials."""

from __future__ import annotations

from typing import Any

LOCK_TIMEOUT_S = 120


def open_storage(url: str) -> Any:
    """Optuna's storage at a database's URL; waits while another process writes an SQLite file."""
    import optuna

    engine = {"connect_args": {"timeout": LOCK_TIMEOUT_S}} if url.startswith("sqlite") else {}
    return optuna.storages.RDBStorage(url, engine_kwargs=engine)
