"""Scores and losses by category: a field of the record, with or without input, length of the reference."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from instruct_lit.errors import ConfigError
from instruct_lit.evaluation.metrics import BEYOND_SHARES, Row
from instruct_lit.evaluation.statistics import Interval, interval
from instruct_lit.words import words

LENGTHS = (5, 15, 40)  # words of the reference, upper bounds of the buckets
MAX_VALUES = 50


def category(row: Row, field: str) -> str:
    """The value of a field; `input` is with or without input, `length` the bucket of the reference's length."""
    if field == "input":
        return "with input" if row.get("input") else "without input"
    if field == "length":
        place = bisect_left(LENGTHS, len(words(row["output"])))
        low = LENGTHS[place - 1] + 1 if place else 0
        return f"{low} to {LENGTHS[place]} words" if place < len(LENGTHS) else f"over {LENGTHS[-1]} words"
    value = row.get(field)
    return "none" if value is None else str(value)


def check_fields(rows: Sequence[Row], fields: Sequence[str]) -> None:
    """Raise ConfigError for a field that no record has, and for one with too many values to be a category."""
    known = sorted({str(key) for row in rows for key in row})
    for field in fields:
        if field not in (*known, "input", "length"):
            raise ConfigError(f"by={field}: no record has such a field; allowed are length, {', '.join(known)}")
        n_values = len({category(row, field) for row in rows})
        if n_values > MAX_VALUES:
            raise ConfigError(f"by={field}: {n_values} different values; at most {MAX_VALUES} are allowed")


def by_category(rows: Sequence[Row], field: str, metric: str, seed: int = 0) -> dict[str, dict[str, Any]]:
    """For each value of a field the number of rows, the metric from their `scores`, and the figures of `losses`."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(category(row, field), []).append(row)
    found: dict[str, dict[str, Any]] = {}
    for value in sorted(groups, key=_order):
        values = [row["scores"][metric] for row in groups[value] if metric in row["scores"]]  # of rows that it concerns
        score = {metric: interval(values, seed, shares=metric not in BEYOND_SHARES)} if values else {}
        found[value] = {"n": len(groups[value]), **score, **losses(groups[value], seed)}
    return found


def losses(rows: Sequence[Row], seed: int = 0) -> dict[str, Interval]:
    """Mean loss over all response tokens and its exponential, the perplexity; empty for rows without losses.

    The intervals come from resampling rows, since tokens of one response are not independent.
    """
    if not rows or any("loss" not in row for row in rows):
        return {}
    loss = interval([row["loss"] for row in rows], seed, [row["n_response_tokens"] for row in rows])
    return {"loss": loss, "perplexity": {key: v if v is None or key == "n" else math.exp(v) for key, v in loss.items()}}


def lines(evaluation: Mapping[str, Any]) -> list[tuple[str, Interval]]:
    """The lines of a table: metrics, kinds of checks, loss and perplexity, then first metric and loss by category."""
    metrics: dict[str, Interval] = evaluation["metrics"]
    first = next(iter(metrics))
    kinds = {f"  checks, {kind}": value for kind, value in evaluation.get("checks", {}).items()}
    found = [*metrics.items(), *kinds.items(), *evaluation.get("losses", {}).items()]
    for change in evaluation.get("changes", ()):
        metric = change["metric"]
        sides = ((metric, "after"), (f"  {metric} of the base", "before"), (f"  {metric}, change", "change"))
        found += [(name, change[side]) for name, side in sides if side in change]
    for field, values in evaluation["by"].items():
        of_field = f"{field}: " if len(evaluation["by"]) > 1 else ""
        for value, numbers in values.items():
            found += [(f"  {name}, {of_field}{value}", numbers[name]) for name in (first, "loss") if name in numbers]
    return found


def _order(value: str) -> tuple[int, int, str]:
    """The sort key: buckets by their bounds, other values alphabetically."""
    number = value.removeprefix("over ").partition(" ")[0]
    is_bucket = value.endswith(" words") and number.isdigit()
    return (int(is_bucket), int(number) if is_bucket else 0, value)
