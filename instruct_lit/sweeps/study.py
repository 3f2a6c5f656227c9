"""An Optuna study, shared by a sweep and its trials: its database, and its pruner."""

from typing import Any

LOCK_TIMEOUT_S = 120
PRUNERS = ("median", "hyperband", "none")


def open_storage(url: str) -> Any:
    """Optuna's storage at a database's URL; waits while another process writes an SQLite file."""
    import optuna

    engine = {"connect_args": {"timeout": LOCK_TIMEOUT_S}} if url.startswith("sqlite") else {}
    return optuna.storages.RDBStorage(url, engine_kwargs=engine)


def make_pruner(name: str, n_startup_trials: int, n_warmup_steps: int) -> Any:
    """One of `PRUNERS`; the numbers are those of the median pruner."""
    from optuna import pruners

    if name == "median":
        return pruners.MedianPruner(n_startup_trials, n_warmup_steps)
    return pruners.HyperbandPruner() if name == "hyperband" else pruners.NopPruner()
