"""Agreement of two judges on the same responses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instruct_lit.core.optional_imports import load
from instruct_lit.errors import ConfigError, DataError

N_LEVELS = 5  # equal parts of the scale that Cohen's kappa compares


def agreement(
    ours: Sequence[float | None], theirs: Sequence[float | None], low: float, high: float
) -> dict[str, float | None]:
    """Pearson's r, Spearman's rho, Kendall's tau-b and Cohen's kappa between two lists of scores on one scale.

    `n` responses have both scores, `n_unpaired` do not. `kappa` and `kappa_quadratic` (Cohen 1960, 1968) compare the
    scores by fifths of the scale. A coefficient that is undefined, because one side is constant, is None.
    """
    stats = load("scipy.stats", "judge.calibrate", "judge")
    kappa_score = load("sklearn.metrics", "judge.calibrate", "judge").cohen_kappa_score
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    found: dict[str, float | None] = {"n": len(pairs), "n_unpaired": len(ours) - len(pairs)}
    names = ("pearson", "spearman", "kendall", "kappa", "kappa_quadratic")
    if len(pairs) < 2:
        return {**found, **dict.fromkeys(names)}
    a, b = np.array(pairs, dtype=np.float64).T
    found |= {"mean": float(a.mean()), "mean_of_the_other": float(b.mean()), "mean_difference": float((a - b).mean())}
    if len(set(a)) < 2 or len(set(b)) < 2:
        return {**found, **dict.fromkeys(names)}
    levels_a, levels_b = (np.minimum((x - low) / (high - low) * N_LEVELS, N_LEVELS - 1).astype(int) for x in (a, b))
    levels = list(range(N_LEVELS))
    same = len({*levels_a, *levels_b}) == 1  # kappa is undefined for a single level
    return {
        **found,
        "pearson": float(stats.pearsonr(a, b).statistic),
        "spearman": float(stats.spearmanr(a, b).statistic),
        "kendall": float(stats.kendalltau(a, b).statistic),
        "kappa": None if same else float(kappa_score(levels_a, levels_b, labels=levels)),
        "kappa_quadratic": None if same else float(kappa_score(levels_a, levels_b, labels=levels, weights="quadratic")),
    }


def read_scores(path: Path, n_answers: int, key: str, low: float, high: float) -> list[float | None]:
    """The score of each response, in order, from a JSON list or JSON lines of numbers or of records with a `score`.

    null stands for a missing score; `key` is the configuration key in messages.

    Raises: ConfigError for a missing file, DataError for another number of scores than responses and for anything but
        numbers from `low` to `high`.
    """
    path = path.expanduser()
    if not path.is_file():
        raise ConfigError(f"{key}={path}: no such file")
    try:
        text = path.read_text(encoding="utf-8")
        values: Any = (
            json.loads(text) if text.lstrip()[:1] == "[" else [json.loads(x) for x in text.split("\n") if x.strip()]
        )
    except (ValueError, RecursionError) as error:
        raise DataError(f"{key}={path}: neither a JSON list nor JSON lines ({error})") from error
    scores: list[float | None] = []
    for number, value in enumerate(values):
        score, place = value.get("score", value) if isinstance(value, dict) else value, f"{key}={path}, item {number}"
        if isinstance(score, bool) or not isinstance(score, int | float | None):
            raise DataError(f"{place}: {str(value)[:80]} is not a score; give a number, a record with one, or null")
        if score is not None and not low <= score <= high:
            raise DataError(f"{place}: {score} is not between {low:g} and {high:g}; see judge.scale")
        scores.append(score)
    if len(scores) != n_answers:
        raise DataError(
            f"{key}={path}: {len(scores)} scores for {n_answers} responses; give one for each in its place, "
            "null where there is none"
        )
    return scores
