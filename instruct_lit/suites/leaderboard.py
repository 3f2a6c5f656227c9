"""The leaderboard as a table and a plot: ratings with their intervals, and who beats whom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instruct_lit.suites.ratings import Battle, Rating

HEADS = ("rank", "model", "Bradley–Terry", "95 % interval", "Elo", "win rate", "battles")


def table_of(ratings: Sequence[Rating]) -> list[list[Any]]:
    """The leaderboard's rows, the best first, under `HEADS`."""
    return [
        [
            place, r.model, round(r.bradley_terry), f"{r.low:.0f} to {r.high:.0f}", round(r.elo), f"{r.win_rate:.1%}",
            r.n_battles,
        ]
        for place, r in enumerate(ratings, 1)
    ]  # fmt: skip


def print_leaderboard(ratings: Sequence[Rating]) -> None:
    """Print the leaderboard; brackets in names are no markup."""
    from instruct_lit.reports.tables import show, table

    board = table(*HEADS, text=("model",))
    for row in table_of(ratings):
        board.add_row(*map(str, row))
    show(board)


def win_matrix(battles: Sequence[Battle], models: Sequence[str]) -> np.ndarray:
    """Share of the row's model in its battles against the column's, ties half; NaN where there was none."""
    place = {model: i for i, model in enumerate(models)}
    wins, n = np.zeros((len(models), len(models))), np.zeros((len(models), len(models)))
    for battle in battles:
        a, b = place[battle.model_a], place[battle.model_b]
        wins[a, b] += battle.share
        wins[b, a] += 1 - battle.share
        n[a, b] += 1
        n[b, a] += 1
    return np.divide(wins, n, out=np.full_like(wins, np.nan), where=n > 0)


def leaderboard_plot(ratings: Sequence[Rating], battles: Sequence[Battle]) -> Any:
    """A matplotlib figure: ratings with intervals, and the win matrix in the same order."""
    from instruct_lit.reports import plots

    models = [rating.model for rating in ratings]
    intervals = [(rating.low, rating.high) for rating in ratings]
    return plots.leaderboard(models, [r.bradley_terry for r in ratings], intervals, win_matrix(battles, models))


def save_plot(path: Path, ratings: Sequence[Rating], battles: Sequence[Battle]) -> None:
    """Write the figure to a file."""
    leaderboard_plot(ratings, battles).savefig(path, dpi=130)
