"""Benchmark items that occur in the training data of a model, and a benchmark's figures without them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from instruct_lit.evaluation.leaks import Leak, find_leaks

Leaks = Mapping[str, Mapping[int, Leak]]  # by task and by the number of the item in it


def leaks_of(train: Iterable[str], texts: Mapping[str, Sequence[str]], near: bool) -> Leaks:
    """The items of each task, given by their texts, that occur in the training texts."""
    places = [(name, number) for name, of_task in texts.items() for number in range(len(of_task))]
    found: dict[str, dict[int, Leak]] = {}
    for leak in find_leaks(train, [text for of_task in texts.values() for text in of_task], near):
        name, number = places[leak.item]
        found.setdefault(name, {})[number] = leak
    return found


def print_leaks(run: str, leaks: Leaks) -> None:
    """Print how many items of each task are in the training data or close to it of a run."""
    if not leaks:
        print(f"leaks: no item was in the training data of {run}")
    for name, found in leaks.items():
        kinds = [leak.kind for leak in found.values()]
        counts = ", ".join(f"{kind} {kinds.count(kind)}" for kind in dict.fromkeys(kinds))
        print(f"leaks: {len(found)} items of {name} are in the training data or close to it of {run} ({counts})")


def figure_without(
    leaked: Mapping[int, Leak], values: Iterable[tuple[int, Any]], aggregate: Callable[[list[Any]], float] = fmean
) -> dict[str, Any]:
    """The leaked items of a task, and its figure over the values of all others.

    The figure is None where no item is left, and where an item has no value of its own (None).
    """
    kept = [value for number, value in values if number not in leaked]
    is_known = bool(kept) and all(value is not None for value in kept)
    items = [{**leak._asdict(), "item": number} for number, leak in sorted(leaked.items())]
    return {"n": len(leaked), "value_without": float(aggregate(kept)) if is_known else None, "items": items}
