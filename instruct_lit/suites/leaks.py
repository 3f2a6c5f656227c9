"""Benchmark items that occur in the training data of a model, and a benchmark's figures without them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from instruct_lit.evaluation.leaks import Leak, find_leaks
from instruct_lit.suites.suite import Items

if TYPE_CHECKING:
    from lm_eval.api.task import Task

Leaks = Mapping[str, Mapping[int, Leak]]  # by task and by the number of the item in it


def leaks_of_tasks(train: Iterable[str], tasks: Mapping[str, Task], limit: int | None, near: bool) -> Leaks:
    """The first `limit` items of each task that occur in the training texts.

    An item is searched by its prompt without few-shot examples, as the harness renders it.
    """
    return _leaks_of(
        train,
        {name: [_text(task, document) for document in islice(task.eval_docs, limit)] for name, task in tasks.items()},
        near,
    )


def leaks_of_items(train: Iterable[str], items: Mapping[str, Items], near: bool) -> Leaks:
    """The items of each task of a package that occur in the training texts."""
    return _leaks_of(train, {name: [text for text, _ in rows] for name, rows in items.items()}, near)


def _leaks_of(train: Iterable[str], texts: Mapping[str, Sequence[str]], near: bool) -> Leaks:
    places = [(name, number) for name, of_task in texts.items() for number in range(len(of_task))]
    found: dict[str, dict[int, Leak]] = {}
    for leak in find_leaks(train, [text for of_task in texts.values() for text in of_task], near):
        name, number = places[leak.item]
        found.setdefault(name, {})[number] = leak
    return found


def mean_without(items: Items, leaked: Mapping[int, Leak]) -> dict[str, Any]:
    """As `figure_without`, for items with their values."""
    values = [value for number, (_, value) in enumerate(items) if number not in leaked]
    known = [value for value in values if value is not None]
    return _record(leaked, sum(known) / len(known) if known and len(known) == len(values) else None)


def print_leaks(run: str, leaks: Leaks | None) -> None:
    """Print how many items of each task were in the training data of a run; nothing where they are unknown."""
    if leaks is None:
        return
    if not leaks:
        print(f"leaks: no item was in the training data of {run}")
    for name, found in leaks.items():
        kinds = [leak.kind for leak in found.values()]
        counts = ", ".join(f"{kind} {kinds.count(kind)}" for kind in dict.fromkeys(kinds))
        print(f"leaks: {len(found)} items of {name} were in the training data of {run} ({counts})")


def figure_without(
    task: Task, samples: Sequence[Mapping[str, Any]], metric: str, leaked: Mapping[int, Leak]
) -> dict[str, Any]:
    """The leaked items of a task, and its metric over all others (None where there is none)."""
    first = samples[0]["filter"]
    values = [sample[metric] for sample in samples if sample["filter"] == first and sample["doc_id"] not in leaked]
    return _record(leaked, float(task.aggregation()[metric](values)) if values else None)


def _record(leaked: Mapping[int, Leak], value_without: float | None) -> dict[str, Any]:
    items = [{**leak.as_record(), "item": number} for number, leak in sorted(leaked.items())]
    return {"n": len(leaked), "value_without": value_without, "items": items}


def _text(task: Task, document: Any) -> str:
    text = task.doc_to_text(document)
    if isinstance(text, int):  # tasks whose prompts are the choices, such as winogrande
        text = task.doc_to_choice(document)[text]
    return str(text)
