"""Labels that people gave to responses: rates, agreement between reviewers, and which metric predicts them."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from instruct_lit.core.data.records import read_records
from instruct_lit.errors import DataError
from instruct_lit.evaluation.statistics import Z_95, Interval, interval

VALUES = {"right": 1.0, "partly": 0.5, "wrong": 0.0, "off-topic": 0.0}  # own labels have no value
MATCHED = ("instruction", "input", "response")  # fields that a label repeats, where the page has written it
Labels = Mapping[Any, Mapping[str, str]]  # by id of the response, then by reviewer


def read_labels(path: Path, rows: Sequence[Mapping[str, Any]]) -> dict[Any, dict[str, str]]:
    """The labels of responses in a file of records with `id`, `label` and `reviewer`.

    A later label of a reviewer replaces an earlier one, and null withdraws it. Labels that repeat another instruction
    or response than that of the row with their id are those of other responses, and left out.

    Raises: DataError, naming the line, for a record that is not a label or has the id of no row; for no labels at all.
    """
    known = {str(row["id"]): row for row in rows}  # the ids of a CSV file are texts
    found: dict[Any, dict[str, str]] = {}
    for place, record in read_records(path.expanduser()):
        if isinstance(record, DataError):  # such as a line that a crash has cut off
            print(f"{record}; skipped", flush=True)
            continue
        given = record if isinstance(record, dict) else {}
        number, label, reviewer = given.get("id"), given.get("label", ""), given.get("reviewer", "reviewer")
        if not (isinstance(number, int | str) and is_label(reviewer) and (label is None or is_label(label))):
            raise DataError(f"{place}: not a label; give a record with id, label and reviewer")
        row = known.get(str(number))
        if row is None and "response" not in given:
            raise DataError(f"{place}: no response has the id {number!r:.60}")
        if row is not None and all(given.get(field, row.get(field)) == row.get(field) for field in MATCHED):
            found.setdefault(row["id"], {})[reviewer] = label
    kept = {number: {who: label for who, label in by.items() if label is not None} for number, by in found.items()}
    kept = {number: by for number, by in kept.items() if by}
    if not kept:
        raise DataError(f"{path}: it has no labels of these responses")
    return kept


def is_label(value: Any) -> bool:
    """Whether a value can be a label or a reviewer: text that is not empty."""
    return isinstance(value, str) and bool(value.strip())


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
    """The figures of people's labels; `rows` have `scores`, the judge's `value`, and `sources`, each where known.

    `rates` are shares of all labels, their intervals those of the responses' means, since labels of one response are
    not independent; `sources` are the rates of each source. `predictors` are the rank correlations (Spearman) of
    metrics and judge with the mean value of a response's labels, the strongest first. `disagreements` are ids with
    different labels.
    """
    names = list(dict.fromkeys([*VALUES, *sorted(label for given in labels.values() for label in given.values())]))
    reviewers = sorted({reviewer for given in labels.values() for reviewer in given})
    pairs = {}
    for a, b in combinations(reviewers, 2):
        both = [(given[a], given[b]) for given in labels.values() if a in given and b in given]
        if both:
            sides = tuple(zip(*both, strict=True))
            pairs[f"{a}, {b}"] = {"n": len(both), "kappa": cohen(*sides), "same": interval([x == y for x, y in both])}

    def rates(of: Sequence[Mapping[str, str]]) -> dict[str, Interval]:
        shares = {name: [sum(x == name for x in given.values()) / len(given) for given in of] for name in names}
        return {name: interval(values, seed) for name, values in shares.items()}

    by_source: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        for source in row.get("sources", ()) if row["id"] in labels else ():
            by_source.setdefault(source, []).append(labels[row["id"]])
    return {
        "n_labels": sum(map(len, labels.values())),
        "n_responses": len(labels),
        "rates": rates(list(labels.values())),
        "sources": {source: rates(of) for source, of in sorted(by_source.items())} if len(by_source) > 1 else {},
        "agreement": pairs,
        "alpha": krippendorff([list(given.values()) for given in labels.values()]),
        "predictors": _predictors(rows, labels),
        "disagreements": [number for number, given in labels.items() if len(set(given.values())) > 1],
    }


def _predictors(rows: Sequence[Mapping[str, Any]], labels: Labels) -> dict[str, Interval]:
    """Spearman's rank correlation of each metric with people, its interval that of Bonett and Wright (2000)."""
    columns: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        values = [VALUES[label] for label in labels.get(row["id"], {}).values() if label in VALUES]
        judge = {"judge": value} if (value := row.get("judge", {}).get("value")) is not None else {}
        for name, score in {**row["scores"], **judge}.items() if values else ():
            columns.setdefault(name, []).append((float(np.mean(values)), score))
    found: dict[str, Interval] = {}
    for name, pairs in columns.items():
        people, scores = (_ranks(side) for side in zip(*pairs, strict=True))
        if np.ptp(people) and np.ptp(scores):
            rho, n = float(np.corrcoef(people, scores)[0, 1]), len(pairs)
            bounds: dict[str, float | None] = {"low": None, "high": None}
            if n > 3 and abs(rho) < 1 - 1e-9:
                spread = Z_95 * math.sqrt((1 + rho**2 / 2) / (n - 3))
                bounds = {k: math.tanh(math.atanh(rho) + s * spread) for k, s in (("low", -1), ("high", 1))}
            found[name] = {"mean": rho, **bounds, "n": n}
    return dict(sorted(found.items(), key=lambda item: -abs(item[1]["mean"])))


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]
