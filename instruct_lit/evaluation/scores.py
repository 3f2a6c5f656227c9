"""All figures of a set of responses: metrics, losses, categories, leaks."""

from collections.abc import Iterable, Sequence
from typing import Any

from instruct_lit.evaluation.answer_parts import final
from instruct_lit.evaluation.categories import by_category, check_fields, losses
from instruct_lit.evaluation.checks import by_kind
from instruct_lit.evaluation.leaks import find_leaks, question
from instruct_lit.evaluation.metrics import METRICS, comparable, concerns, score
from instruct_lit.optional_imports import installed


def score_rows(
    rows: Sequence[dict[str, Any]],
    metrics: Sequence[str],
    by: Sequence[str] = (),
    seed: int = 0,
    training: Iterable[str] | None = None,
    near: bool | None = None,
) -> dict[str, Any]:
    """The figures of `evaluation.json`; every row gets its `scores`, a leaked one the kind of its `leak`.

    Args:
        by: the fields for whose values the first metric and the loss are given.
        training: the questions of the training examples, in which leaks are searched; None: no search.
        near: whether near-duplicates are leaks; None: where scikit-learn is installed.

    Raises: ConfigError for an unknown field of `by`, and where no metric is defined for a row.
    """
    check_fields(rows, by)
    names = comparable(metrics, [(row,) for row in rows])
    add_scores(rows, names)
    return {
        "metrics": score(rows, names, seed),
        "checks": by_kind([*map(final, rows)], seed) if "checks" in names else {},
        "losses": losses(rows, seed),
        "leaks": None if training is None else leak_report(rows, training, names, seed, near),
        "by": {field: by_category(rows, field, names[0], seed) for field in by},
    }


def add_scores(rows: Iterable[dict[str, Any]], names: Sequence[str]) -> None:
    """Give every row the value of each named metric that concerns it as its `scores`."""
    for row in rows:
        row["scores"] = {name: METRICS[name](row) for name in names if concerns(name, row)}


def leak_report(
    rows: Sequence[dict[str, Any]], training: Iterable[str], metrics: Sequence[str], seed: int, near: bool | None
) -> dict[str, Any]:
    """The rows that occur in the training data, and the metrics without them."""
    near = installed("sklearn") if near is None else near
    questions = [question(row) for row in rows]
    leaks = find_leaks(training, questions, near)
    for leak in leaks:
        rows[leak.item]["leak"] = leak.kind
    items = [
        {**leak._asdict(), "id": rows[leak.item]["id"], "text": " ".join(questions[leak.item].split())[:100]}
        for leak in leaks
    ]
    clean = [row for row in rows if "leak" not in row]
    without = score(clean, metrics, seed) if clean else {}
    return {"near": near, "n": len(leaks), "n_rows": len(rows), "items": items, "metrics_without": without}
