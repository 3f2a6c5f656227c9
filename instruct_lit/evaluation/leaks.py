"""Contamination: the examples of a test split or benchmark that also occur in the training data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from instruct_lit.core.data.example import words
from instruct_lit.datasets.near_duplicates import NearDuplicateIndex, jaccard, shingles

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
    item_words = [words(text) for text in items]
    exact: dict[tuple[str, ...], list[int]] = {}
    ngrams: dict[tuple[str, ...], list[int]] = {}
    index, indexed = NearDuplicateIndex(exact=True, what="leaks.near=true") if near else None, []
    for number, found in enumerate(item_words):
        exact.setdefault(tuple(found), []).append(number)
        for ngram in _ngrams(found):
            ngrams.setdefault(ngram, []).append(number)
        if index is not None and found:
            index.add(items[number])
            indexed.append(number)
    best: dict[int, Leak] = {}

    def keep(leak: Leak) -> None:
        old = best.get(leak.item)
        if old is None or _strength(leak) > _strength(old):
            best[leak.item] = leak

    for place, text in enumerate(train):
        found = words(text)
        if not found:
            continue
        for item in exact.get(tuple(found), ()):
            keep(Leak(item, place, "exact", 1.0))
        for item in {item for ngram in _ngrams(found) for item in ngrams.get(ngram, ())}:
            keep(Leak(item, place, "ngram", jaccard(shingles(text), shingles(items[item]))))
        for number, similarity in index.matches(text) if index is not None else ():
            keep(Leak(indexed[number], place, "near", similarity))
    return [best[item] for item in sorted(best)]


def _strength(leak: Leak) -> tuple[int, float]:
    return ("ngram", "near", "exact").index(leak.kind), leak.similarity


def _ngrams(found: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(found[i : i + NGRAM]) for i in range(len(found) - NGRAM + 1)]
