"""Contamination: the examples of a test split or benchmark that also occur in the training data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from instruct_lit.datasets.near_duplicates import NearDuplicateIndex, jaccard, shingles, words

if TYPE_CHECKING:
    from instruct_lit.core.data.datamodule import InstructionData

NGRAM = 13  # words, as in the overlap analysis of GPT-3 (Brown et al. 2020, appendix C)


@dataclass(frozen=True)
class Leak:
    """An evaluated item that occurs in the training texts.

    `kind` is `exact` (the same words), `near` (near-duplicate) or `ngram` (thirteen consecutive words in common);
    `train` is the index of the training text, `similarity` the Jaccard similarity of the two.
    """

    item: int
    train: int
    kind: str
    similarity: float

    def as_record(self) -> dict[str, Any]:
        """For `evaluation.json`."""
        return asdict(self)


def question(record: Mapping[str, Any]) -> str:
    """The text by which a leak is searched: earlier turns, instruction and input of a record."""
    before = [text for turn in record.get("history") or () for text in turn]
    return "\n".join((*before, record["instruction"], record.get("input") or ""))


def training_questions(data: InstructionData) -> Iterator[str]:
    """The question of every training example of a data set."""
    store, indices = data.examples_of("train")
    return (question(store.example(int(index)).as_record()) for index in indices)


def find_leaks(train: Iterable[str], items: Sequence[str], near: bool = True) -> list[Leak]:
    """At most one leak per item, the strongest kind found; the training texts are read once.

    `near` also searches near-duplicates, whose exact Jaccard similarity over word shingles reaches the threshold.

    Raises: ConfigError when `near` is set and the extra `filters` is not installed.
    """
    exact, ngrams = defaultdict(list), defaultdict(list)  # by words: the numbers of items
    index, indexed = NearDuplicateIndex(exact=True, what="leaks.near=true") if near else None, []
    for number, item in enumerate(items):
        found = words(item)
        exact[tuple(found)].append(number)
        for ngram in _ngrams(found):
            ngrams[ngram].append(number)
        if index is not None and found:
            index.add(item)
            indexed.append(number)
    best: dict[int, Leak] = {}
    for place, text in enumerate(train):
        found = words(text)
        if not found:
            continue
        leaks = [Leak(number, place, "exact", 1.0) for number in exact.get(tuple(found), ())]
        for number in {number for ngram in _ngrams(found) for number in ngrams.get(ngram, ())}:
            leaks.append(Leak(number, place, "ngram", jaccard(shingles(text), shingles(items[number]))))
        for number, similarity in index.matches(text) if index is not None else ():
            leaks.append(Leak(indexed[number], place, "near", similarity))
        for leak in leaks:
            if leak.item not in best or _strength(leak) > _strength(best[leak.item]):
                best[leak.item] = leak
    return [best[number] for number in sorted(best)]


def _strength(leak: Leak) -> tuple[int, float]:
    return ("ngram", "near", "exact").index(leak.kind), leak.similarity


def _ngrams(found: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(found[i : i + NGRAM]) for i in range(len(found) - NGRAM + 1)]
