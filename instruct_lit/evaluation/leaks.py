"""Contamination: the examples of a test split or benchmark that also occur in the training data."""

from collections.abc import Iterable, Iterator, Sequence

from instruct_lit.core.data.encode import EncodedStore
from instruct_lit.datasets.leaks import Leak, LeakFinder, question

KINDS = ("ngram", "near", "exact")  # the weakest first


def questions_in(store: EncodedStore, indices: Iterable[int]) -> Iterator[str]:
    """The questions of the examples of a store with these indices."""
    return (question(store.example(int(index)).as_record()) for index in indices)


def find_leaks(train: Iterable[str], items: Sequence[str], near: bool = True) -> list[Leak]:
    """At most one leak per item, the strongest kind found; the training texts are read once.

    Raises: ConfigError when `near` is set and the extra `filters` is not installed.
    """
    best: dict[int, Leak] = {}
    for leak in LeakFinder(items, near).find(train):
        best[leak.item] = max(best.get(leak.item, leak), leak, key=lambda one: (KINDS.index(one.kind), one.similarity))
    return [best[number] for number in sorted(best)]
