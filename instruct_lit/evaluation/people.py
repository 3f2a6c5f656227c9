"""Labels that people gave to responses: rates, agreement between reviewers, and which metric predicts them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from instruct_lit.core.data.records import read_records
from instruct_lit.errors import DataError
from instruct_lit.evaluation.statistics import interval

VALUES = {"right": 1.0, "partly": 0.5, "wrong": 0.0, "off-topic": 0.0}  # own labels have no value
Labels = Mapping[Any, Mapping[str, str]]  # by id of the response, then by reviewer


def read_labels(path: Path, ids: Sequence[Any]) -> dict[Any, dict[str, str]]:
    """Labels of a file of records with `id` (of a response), `label`, and `reviewer`; a later one replaces an earlier.

    Raises: DataError, naming the line, for a record without them, and for the id of no response.
    """
    known = set(ids)
    found: dict[Any, dict[str, str]] = {}
    for place, record in read_records(path.expanduser()):
        if isinstance(record, DataError):
            raise record
        row = record if isinstance(record, dict) else {}
        label, reviewer, number = row.get("label"), row.get("reviewer", "reviewer"), row.get("id")
        if not isinstance(label, str) or not label or not isinstance(reviewer, str):
            raise DataError(f"{place}: not a label; give a record with id, label and reviewer")
        if not isinstance(number, int | str) or number not in known:
            raise DataError(f"{place}: no response has the id {number!r:.60}")
        found.setdefault(number, {})[reviewer] = label
    if not found:
        raise DataError(f"{path}: it has no labels")
    return found


def cohen(a: Sequence[str], b: Sequence[str]) -> float | None:
    """Cohen's kappa (1960) of two reviewers' labels of the same responses; None where it is undefined."""
    expected = sum(n * Counter(b)[label] for label, n in Counter(a).items()) / len(a) ** 2
    observed = sum(x == y for x, y in zip(a, b, strict=True)) / len(a)
    return (observed - expected) / (1 - expected) if expected < 1 else None


def krippendorff(units: Sequence[Sequence[str]]) -> float | None:
    """Krippendorff's alpha for labels without an order (2011) of units with two or more; None where it is undefined."""
    shared = [Counter(labels) for labels in units if len(labels) > 1]
    totals = sum(shared, Counter())
    n = totals.total()
    disagreement = sum((u.total() ** 2 - sum(c * c for c in u.values())) / (u.total() - 1) for u in shared)
    expected = (n * n - sum(c * c for c in totals.values())) / (n - 1) if n > 1 else 0.0
    return 1 - disagreement / expected if expected else None


def people(rows: Sequence[Mapping[str, Any]], labels: Labels, seed: int = 0) -> dict[str, Any]:
    """The figures of people's labels; `rows` have `scores`, and the judge's `value` where there is one.

    `rates` are shares of all labels, their intervals those of the responses' means, since labels of one response are
    not independent. `predictors` are the rank correlations (Spearman) of metrics and judge with the mean value of a
    response's labels, the strongest first. `disagreements` are ids with different labels.
    """
    names = list(dict.fromkeys([*VALUES, *sorted(label for given in labels.values() for label in given.values())]))
    reviewers = sorted({reviewer for given in labels.values() for reviewer in given})
    shares = {
        name: [sum(label == name for label in given.values()) / len(given) for given in labels.values()]
        for name in names
    }
    pairs = {}
    for a, b in combinations(reviewers, 2):
        both = [(given[a], given[b]) for given in labels.values() if a in given and b in given]
        if both:
            sides = tuple(zip(*both, strict=True))
            pairs[f"{a}, {b}"] = {"n": len(both), "kappa": cohen(*sides), "same": interval([x == y for x, y in both])}
    return {
        "n_labels": sum(map(len, labels.values())),
        "n_responses": len(labels),
        "rates": {name: interval(values, seed) for name, values in shares.items()},
        "agreement": pairs,
        "alpha": krippendorff([list(given.values()) for given in labels.values()]),
        "predictors": _predictors(rows, labels),
        "disagreements": [number for number, given in labels.items() if len(set(given.values())) > 1],
    }


def _predictors(rows: Sequence[Mapping[str, Any]], labels: Labels) -> dict[str, float]:
    columns: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        values = [VALUES[label] for label in labels.get(row["id"], {}).values() if label in VALUES]
        judge = {"judge": value} if (value := row.get("judge", {}).get("value")) is not None else {}
        for name, score in {**row["scores"], **judge}.items() if values else ():
            columns.setdefault(name, []).append((float(np.mean(values)), score))
    found = {}
    for name, pairs in columns.items():
        people, scores = zip(*pairs, strict=True)
        if len(set(people)) > 1 and len(set(scores)) > 1:
            found[name] = float(np.corrcoef(_ranks(people), _ranks(scores))[0, 1])
    return dict(sorted(found.items(), key=lambda item: -abs(item[1])))


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]
