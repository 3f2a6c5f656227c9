"""Ratings of models out of battles, as Chatbot Arena makes them (Chiang et al. 2024): Bradley–Terry and Elo.

evalica (Ustalov 2025) computes them; it is in the extra `arena`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from instruct_lit.core.optional_imports import load
from instruct_lit.errors import DataError

WINNERS = ("model_a", "model_b", "tie", "both_bad")
_SPELLINGS = {"tie (bothbad)": "both_bad", "bothbad": "both_bad"}  # of published battles
CENTRE, SCALE = 1000.0, 400.0  # the mean of the models, and the distance at which one wins ten times as often


@dataclass(frozen=True)
class Battle:
    """Two models' answers to one question, and which was better."""

    model_a: str
    model_b: str
    winner: str

    @property
    def share(self) -> float:
        """Model A's share of the win: 1, 0, and 1/2 where neither was better."""
        return {"model_a": 1.0, "model_b": 0.0}.get(self.winner, 0.5)


@dataclass(frozen=True)
class Rating:
    """A model's place: Bradley–Terry on Elo's scale with its 95 % bootstrap interval, Elo, and its battles.

    Elo follows the battles in their order, Bradley–Terry knows none. `win_rate` counts a tie as half a win.
    """

    model: str
    bradley_terry: float
    low: float
    high: float
    elo: float
    n_battles: int
    win_rate: float


def read_battles(path: Path) -> list[Battle]:
    """Battles of a file of JSON lines with `model_a`, `model_b` and `winner`, which may be compressed with gzip.

    Raises DataError that names the line of one that cannot be read, and where there is none.
    """
    battles = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    battles.append(_battle(line, f"{path}, line {number}"))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:  # EOFError: a compressed file that breaks off
        raise DataError(f"{path}: cannot be read ({error})") from error
    if not battles:
        raise DataError(f"{path}: no battle in it")
    return battles


def _battle(line: str, place: str) -> Battle:
    try:
        row = json.loads(line)
        winner = str(row["winner"])
        battle = Battle(str(row["model_a"]), str(row["model_b"]), _SPELLINGS.get(winner, winner))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{place}: no battle with model_a, model_b and winner ({type(error).__name__}: {error})"
        ) from error
    if battle.winner not in WINNERS:
        raise DataError(f"{place}: winner is {battle.winner!r}; allowed are {', '.join(WINNERS)}")
    if battle.model_a == battle.model_b:
        raise DataError(f"{place}: {battle.model_a} against itself")
    return battle


def leaderboard(battles: Sequence[Battle], n_resamples: int = 200, seed: int = 0) -> list[Rating]:
    """Ratings of all models, the best first; both bad counts as a tie.

    Raises ConfigError where evalica is not installed, DataError where there is no battle.
    """
    import numpy as np

    evalica = load("evalica", "ratings", "arena")

    if not battles:
        raise DataError("no battle to rate")
    outcomes = {"model_a": evalica.Winner.X, "model_b": evalica.Winner.Y}
    n_given = len(battles)
    if n_given == 1:  # every resample of one battle is that battle, but the bootstrap wants two
        battles = [*battles, *battles]
    xs, ys = [b.model_a for b in battles], [b.model_b for b in battles]
    winners = [outcomes.get(b.winner, evalica.Winner.Draw) for b in battles]
    found = evalica.bootstrap(
        evalica.bradley_terry,
        xs,
        ys,
        winners,
        n_resamples=n_resamples,
        bootstrap_method="percentile",
        random_state=seed,
    )
    logs = np.log(found.distribution)  # every resample on its own scale
    scores = np.log(found.result.scores)
    centred = CENTRE + SCALE / np.log(10) * (scores - scores.mean())
    spread = CENTRE + SCALE / np.log(10) * logs.sub(logs.mean(axis=1), axis=0)
    elo = evalica.elo(xs[:n_given], ys[:n_given], winners[:n_given]).scores
    n_battles, n_wins = _counts(battles[:n_given])
    ratings = [
        Rating(
            model=str(model),
            bradley_terry=float(centred[model]),
            low=float(np.percentile(spread[model], 2.5)),
            high=float(np.percentile(spread[model], 97.5)),
            elo=float(elo[model]),
            n_battles=n_battles[str(model)],
            win_rate=n_wins[str(model)] / n_battles[str(model)],
        )
        for model in centred.index
    ]
    # Bradley–Terry cannot tell models apart of which one has won every battle; Elo can.
    return sorted(ratings, key=lambda rating: (-round(rating.bradley_terry, 6), -rating.elo))


def _counts(battles: Sequence[Battle]) -> tuple[Counter[str], Mapping[str, float]]:
    n_battles: Counter[str] = Counter()
    n_wins: dict[str, float] = {}
    for battle in battles:
        for model, share in ((battle.model_a, battle.share), (battle.model_b, 1 - battle.share)):
            n_battles[model] += 1
            n_wins[model] = n_wins.get(model, 0.0) + share
    return n_battles, n_wins
