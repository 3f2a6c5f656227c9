"""The leaderboard as a table and a plot: ratings with their intervals, and the win matrix."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instruct_lit.errors import ConfigError
from instruct_lit.evaluation.ratings import Battle, Rating, leaderboard, win_counts
from instruct_lit.reports.tables import show, show_table

HEADS = ("rank", "model", "Bradley–Terry", "95 % interval", "Elo", "wins", "battles")
SEVERAL_GROUPS = "a rank such as 2.1 is that of a group: no battles connect its models to the others, so ratings of \
different groups cannot be compared"


def table_of(ratings: Sequence[Rating]) -> list[list[Any]]:
    """The leaderboard's rows, the best first, under `HEADS`; with several groups ranks are `<group>.<rank>`.

    A rank counts the models whose intervals lie above or below: `1 to 3` where the battles leave it open.
    """
    rows: list[list[Any]] = []
    for r in ratings:
        group, prefix = [o for o in ratings if o.group == r.group], f"{r.group}." if ratings[-1].group > 1 else ""
        best, worst = 1 + sum(o.low > r.high for o in group), len(group) - sum(o.high < r.low for o in group)
        rank = f"{prefix}{best}" if best == worst else f"{prefix}{best} to {prefix}{worst}"
        points = (round(r.bradley_terry), f"{r.low:.0f} to {r.high:.0f}", round(r.elo))
        rows.append([rank, r.model, *points, f"{r.win_rate:.1%}", r.n_battles])
    return rows


def show_leaderboard(battles: Sequence[Battle], plot: str | None = None) -> list[Rating]:
    """Rate the models of battles, print the leaderboard, plot it where `plot` names a file, and return it.

    Raises: DataError without battles, ConfigError for a plot that cannot be written.
    """
    ratings = leaderboard(battles)
    show_table(HEADS, table_of(ratings), text=("model",))
    if ratings[-1].group > 1:
        show(SEVERAL_GROUPS)
    if plot is not None:
        from instruct_lit.reports.plots import save

        path = Path(plot).expanduser()
        try:
            save(leaderboard_plot(ratings, battles), path)
        except (OSError, ValueError) as error:  # a missing folder, or a suffix that matplotlib does not know
            raise ConfigError(f"plot={path}: cannot be written ({error}); give a file such as board.png") from error
        print(f"plot: {path}")
    return ratings


def win_matrix(battles: Sequence[Battle], models: Sequence[str]) -> np.ndarray:
    """The row model's share of the wins against the column model, ties half; NaN where they did not meet."""
    wins = win_counts(battles, models)
    n = wins + wins.T
    return np.divide(wins, n, out=np.full_like(wins, np.nan), where=n > 0)


def leaderboard_plot(ratings: Sequence[Rating], battles: Sequence[Battle]) -> Any:
    """A matplotlib figure: ratings with intervals, and the win matrix in the same order."""
    from instruct_lit.reports import plots

    models, intervals = [rating.model for rating in ratings], [(rating.low, rating.high) for rating in ratings]
    return plots.leaderboard(models, [r.bradley_terry for r in ratings], intervals, win_matrix(battles, models))
