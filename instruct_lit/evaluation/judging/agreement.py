"""Agreement of two judges on the same responses."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from instruct_lit.errors import ConfigError, DataError
from instruct_lit.optional_imports import load

N_LEVELS = 5  # equal parts of the scale that Cohen's kappa compares


def agreement(
    ours: Sequence[float | None], theirs: Sequence[float | None], low: float, high: float
) -> dict[str, float | None]:
    """Pearson's r, Spearman's rho, Kendall's tau-b and Cohen's kappa between two lists of scores on one scale.

    `n` responses have both scores, `n_unpaired` do not. `kappa` and `kappa_quadratic` (Cohen 1960, 1968) compare the
    scores by fifths of the scale. A coefficient that is undefined, because one side is constant, is None.
    """
    stats = load("scipy.stats", "judge.calibrate", "judge")
    kappa = load("sklearn.metrics", "judge.calibrate", "judge").cohen_kappa_score
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    found: dict[str, float | None] = {"n": len(pairs), "n_unpaired": len(ours) - len(pairs)}
    coefficients = dict.fromkeys(("pearson", "spearman", "kendall", "kappa", "kappa_quadratic"))
    if len(pairs) < 2:
        return found | coefficients
    a, b = np.array(pairs, dtype=np.float64).T
    found |= {"mean": float(a.mean()), "mean_of_the_other": float(b.mean()), "mean_difference": float((a - b).mean())}
    if len(set(a)) < 2 or len(set(b)) < 2:
        return found | coefficients
    for name, test in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):
        found[name] = float(test(a, b).statistic)
    levels = [np.minimum((x - low) / (high - low) * N_LEVELS, N_LEVELS - 1).astype(int) for x in (a, b)]
    for name, weights in (("kappa", None), ("kappa_quadratic", "quadratic")):
        is_defined = len({*levels[0], *levels[1]}) > 1
        found[name] = float(kappa(*levels, labels=range(N_LEVELS), weights=weights)) if is_defined else None
    return found


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
        is_list = text.lstrip().startswith("[")
        values = json.loads(text) if is_list else [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{key}={path}: neither a JSON list nor JSON lines ({error})") from error
    scores = [value.get("score", value) if isinstance(value, dict) else value for value in values]
    for number, score in enumerate(scores):
        place = f"{key}={path}, item {number}"
        if isinstance(score, bool) or not isinstance(score, int | float | None):
            raise DataError(f"{place}: {str(score)[:80]} is not a score; give a number, a record with one, or null")
        if score is not None and not low <= score <= high:
            raise DataError(f"{place}: {score} is not between {low:g} and {high:g}; see judge.scale")
    if len(scores) != n_answers:
        raise DataError(
            f"{key}={path}: {len(scores)} scores for {n_answers} responses; give one for each in its place, "
            "null where there is none"
        )
    return scores
