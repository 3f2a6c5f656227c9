"""Ratings of models from battles, as in Chatbot Arena (Chiang et al. 2024): Bradley–Terry and Elo."""

import gzip
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from instruct_lit.errors import DataError, printable
from instruct_lit.evaluation.statistics import Z_95

WINNERS = ("model_a", "model_b", "tie", "both_bad")
SPELLINGS = {"tie (bothbad)": "both_bad", "bothbad": "both_bad"}  # of published battles
CENTRE, SCALE = 1000.0, 400.0  # the mean of the models, and the difference at odds of ten to one
POINTS = SCALE / np.log(10)  # of one unit of log-odds
PRIOR_SD = 400.0  # points
ELO_K = 4.0  # the change for an unexpected win, as in Chatbot Arena


@dataclass(frozen=True)
class Battle:
    """Two models that answered one question, and the winner."""

    model_a: str
    model_b: str
    winner: str

    @property
    def share(self) -> float:
        """Model A's share of the win: 1, 0, and 1/2 where neither was better."""
        return {"model_a": 1.0, "model_b": 0.0}.get(self.winner, 0.5)


@dataclass(frozen=True)
class Rating:
    """A model's Bradley–Terry rating on Elo's scale with its 95 % interval, its Elo rating, and its battles."""

    model: str
    bradley_terry: float
    low: float
    high: float
    elo: float  # depends on the order of the battles, Bradley–Terry does not
    n_battles: int
    win_rate: float  # a tie is half a win
    group: int = 1  # ratings of different groups cannot be compared: no chain of battles connects their models


def read_battles(path: Path) -> list[Battle]:
    """Battles of a file of JSON lines with `model_a`, `model_b` and `winner`, which may be compressed with gzip.

    Raises: DataError with the line of an invalid battle, and for a file without battles.
    """
    battles = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    battles.append(_battle(line, f"{path}, line {number}"))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:  # EOFError: a truncated gzip file
        raise DataError(f"{path}: cannot be read ({error})") from error
    if not battles:
        raise DataError(f"{path}: it has no battles")
    return battles


def model_name(value: object) -> str:
    """A model's name as it can be shown: without control characters and what UTF-8 does not have."""
    return printable(str(value).encode(errors="replace").decode())


def _battle(line: str, place: str) -> Battle:
    try:
        row = json.loads(line)
        winner = str(row["winner"])
        battle = Battle(model_name(row["model_a"]), model_name(row["model_b"]), SPELLINGS.get(winner, winner))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise DataError(f"{place}: not a battle with model_a, model_b and winner ({why})") from error
    if battle.winner not in WINNERS:
        raise DataError(f"{place}: winner is {battle.winner!r}; allowed are {', '.join(WINNERS)}")
    if battle.model_a == battle.model_b:
        raise DataError(f"{place}: {battle.model_a} against itself")
    return battle


def leaderboard(battles: Sequence[Battle]) -> list[Rating]:
    """Ratings of all models, the best first within each group, the group with most battles first.

    The strengths of Bradley–Terry are fitted with a normal prior of `PRIOR_SD` points around the group's mean, so that
    a model which won or lost every battle has a finite rating with a wide interval; on models with hundreds of battles
    the prior has no visible effect.

    Raises: DataError where there is no battle.
    """
    if not battles:
        raise DataError("no battle to rate")
    models = list(dict.fromkeys(model for battle in battles for model in (battle.model_a, battle.model_b)))
    wins, elo = win_counts(battles, models), _elo(battles)
    n = wins + wins.T
    ratings = []
    for group, members in enumerate(sorted(_groups(n), key=lambda members: -n[members].sum()), 1):
        strengths, errors = _fit(wins[np.ix_(members, members)])
        centres, errors = CENTRE + POINTS * strengths, Z_95 * POINTS * errors
        bounds = np.stack((centres, centres - errors, centres + errors), axis=1).tolist()
        for i, (rating, low, high) in zip(members, bounds, strict=True):
            n_battles, rate = int(n[i].sum()), float(wins[i].sum() / n[i].sum())
            ratings.append(Rating(models[i], rating, low, high, elo[models[i]], n_battles, rate, group))
    return sorted(ratings, key=lambda rating: (rating.group, -round(rating.bradley_terry, 6), -rating.elo))


def win_counts(battles: Sequence[Battle], models: Sequence[str]) -> np.ndarray:
    """How often each model (row) won against each other (column), `(M, M)`; a tie is half a win for each."""
    place = {model: i for i, model in enumerate(models)}
    wins = np.zeros((len(models), len(models)))
    for battle in battles:
        a, b = place[battle.model_a], place[battle.model_b]
        wins[a, b] += battle.share
        wins[b, a] += 1 - battle.share
    return wins


def _groups(n: np.ndarray) -> list[np.ndarray]:
    """Models connected by battles `n` `(M, M)`, directly or through others, as indices."""
    reached = np.linalg.matrix_power((n > 0) | np.eye(len(n), dtype=bool), len(n))
    return [np.flatnonzero(row) for row in np.unique(reached, axis=0)]


def _fit(wins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds strengths `(M,)` with mean 0 and their standard errors: posterior mode and Laplace's approximation."""
    precision = (POINTS / PRIOR_SD) ** 2
    n, strengths = wins + wins.T, np.zeros(len(wins))
    for _ in range(500):  # Newton's method on a strictly concave function; few steps suffice
        p = 1 / (1 + np.exp(strengths - strengths[:, None]))  # of the row's win
        information = n * p * (1 - p)
        hessian = np.diag(information.sum(axis=1) + precision) - information
        step = np.linalg.solve(hessian, (wins - n * p).sum(axis=1) - precision * strengths)
        largest = np.abs(step).max()
        strengths = strengths + step / max(1, largest)
        if largest < 1e-9:
            break
    # The prior's variance of the mean, which is 0 by definition, is not uncertainty.
    return strengths, np.sqrt(np.maximum(0, np.diag(np.linalg.inv(hessian)) - 1 / (precision * len(wins))))


def _elo(battles: Sequence[Battle]) -> dict[str, float]:
    """Elo ratings after the battles in their order."""
    elo: dict[str, float] = {}
    for battle in battles:
        a, b = (elo.setdefault(model, CENTRE) for model in (battle.model_a, battle.model_b))
        change = ELO_K * (battle.share - 1 / (1 + 10 ** ((b - a) / SCALE)))
        elo[battle.model_a], elo[battle.model_b] = a + change, b - change
    return elo
