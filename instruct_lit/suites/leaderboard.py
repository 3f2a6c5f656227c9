"""The leaderboard as tables and as a picture: ratings with their intervals, and who beats whom."""

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
    """Print the leaderboard; names are shown as they are, whatever brackets are in them."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for head in HEADS:
        table.add_column(head, justify="left" if head == "model" else "right", no_wrap=True)
    for row in table_of(ratings):
        table.add_row(*map(str, row))
    Console().print(table, markup=False)


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


def picture(ratings: Sequence[Rating], battles: Sequence[Battle]) -> Any:
    """A matplotlib figure: ratings with intervals on the left, the win matrix on the right, in the same order."""
    from matplotlib.figure import Figure

    models = [rating.model for rating in ratings]
    places = np.arange(len(models))
    figure = Figure(figsize=(11, 1.6 + 0.42 * len(models)), layout="constrained")
    left, right = figure.subplots(1, 2)
    middle = np.array([r.bradley_terry for r in ratings])
    spread = [[max(0.0, m - r.low) for m, r in zip(middle, ratings, strict=True)],
              [max(0.0, r.high - m) for m, r in zip(middle, ratings, strict=True)]]  # fmt: skip
    left.errorbar(middle, places, xerr=spread, fmt="o", color="#2b6cb0", ecolor="#90b4d8", capsize=3)
    left.set_yticks(places, models)
    left.set_ylim(len(models) - 0.5, -0.5)
    left.set_xlabel("Bradley–Terry rating, 95 % bootstrap interval")
    left.grid(axis="x", alpha=0.3)
    matrix = win_matrix(battles, models)
    right.imshow(matrix, vmin=0, vmax=1, cmap="RdBu", aspect="auto")
    if len(models) <= 20:
        size = 8 if len(models) <= 10 else 5.5
        for i, j in np.argwhere(~np.isnan(matrix)):
            shade = "white" if abs(matrix[i, j] - 0.5) > 0.35 else "black"
            right.text(j, i, f"{matrix[i, j]:.0%}", ha="center", va="center", fontsize=size, color=shade)
    right.set_yticks(places, models)
    right.set_xticks(places, models, rotation=45, ha="right")
    right.set_title("wins of the row against the column, ties half", fontsize=10)
    return figure


def save_picture(path: Path, ratings: Sequence[Rating], battles: Sequence[Battle]) -> None:
    """Write the figure to a file."""
    picture(ratings, battles).savefig(path, dpi=130)
