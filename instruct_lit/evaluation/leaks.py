"""Which examples of a test set or benchmark were in the training data, word for word or nearly."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from instruct_lit.core.optional_imports import load

if TYPE_CHECKING:
    from instruct_lit.core.data.datamodule import InstructionData

NGRAM = 13  # words, as in the overlap analysis of GPT-3 (Brown et al. 2020, appendix C)
SHINGLE = 3  # words that near-duplicates are compared by
THRESHOLD = 0.8  # Jaccard similarity from which two texts are near-duplicates
N_PERMUTATIONS = 128
_WORDS = re.compile(r"\w+")


@dataclass(frozen=True)
class Leak:
    """An examined item that was found among the training texts.

    `kind` is `exact` (the same words), `ngram` (thirteen words in a row are the same) or `near` (MinHash
    near-duplicate); `train` is the place of the training text and `similarity` their Jaccard similarity.
    """

    item: int
    train: int
    kind: str
    similarity: float

    def as_record(self) -> dict[str, Any]:
        """For `evaluation.json`."""
        return asdict(self)


def question(record: Mapping[str, Any]) -> str:
    """What an example asks, which a leak is looked for by: earlier turns, instruction and input."""
    before = [text for turn in record.get("history") or () for text in turn]
    return "\n".join((*before, record["instruction"], record.get("input") or ""))


def training_questions(data: InstructionData) -> Iterator[str]:
    """What the training examples of a data set ask."""
    store, indices = data.examples_of("train")
    return (question(store.example(int(index)).as_record()) for index in indices)


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return _WORDS.findall(text.lower())


def find_leaks(train: Iterable[str], items: Sequence[str], near: bool = True) -> list[Leak]:
    """At most one leak for each item, the strongest kind there is; the training texts are read once.

    `near` looks for near-duplicates with MinHash and locality-sensitive hashing (Broder 1997) through datasketch, and
    keeps those whose exact similarity reaches the threshold. Raises ConfigError when it is not installed.
    """
    item_words = [words(text) for text in items]
    exact: dict[tuple[str, ...], list[int]] = {}
    grams: dict[tuple[str, ...], list[int]] = {}
    for number, found in enumerate(item_words):
        exact.setdefault(tuple(found), []).append(number)
        for gram in _grams(found, NGRAM):
            grams.setdefault(gram, []).append(number)
    index = _Near(item_words) if near else None
    best: dict[int, Leak] = {}

    def keep(item: int, place: int, kind: str, similarity: float) -> None:
        rank = ("exact", "near", "ngram").index
        old = best.get(item)
        if old is None or (rank(kind), -similarity) < (rank(old.kind), -old.similarity):
            best[item] = Leak(item, place, kind, similarity)

    for place, text in enumerate(train):
        found = words(text)
        for item in exact.get(tuple(found), []) if found else ():
            keep(item, place, "exact", 1.0)
        touched = {item for gram in _grams(found, NGRAM) if gram in grams for item in grams[gram]}
        for item in touched:
            keep(item, place, "ngram", jaccard(found, item_words[item]))
        for item, similarity in index.matches(found) if index is not None else ():
            keep(item, place, "near", similarity)
    return [best[item] for item in sorted(best)]


def jaccard(a: Sequence[str], b: Sequence[str]) -> float:
    """Share of the shingles of two texts that both have."""
    ours, theirs = _shingles(a), _shingles(b)
    return len(ours & theirs) / len(ours | theirs) if ours or theirs else 1.0


class _Near:
    """The items in an index that finds near-duplicates of a text."""

    def __init__(self, item_words: Sequence[list[str]]) -> None:
        datasketch = load("datasketch", "leaks.near=true", "filters")
        self._empty, self._words = datasketch.MinHash(num_perm=N_PERMUTATIONS), item_words
        self._index = datasketch.MinHashLSH(threshold=THRESHOLD, num_perm=N_PERMUTATIONS)
        for number, found in enumerate(item_words):
            if found:
                self._index.insert(number, self._signature(found))

    def matches(self, found: list[str]) -> list[tuple[int, float]]:
        """Items whose similarity to a text reaches the threshold."""
        if not found:
            return []
        candidates = self._index.query(self._signature(found))
        similar = [(int(item), jaccard(found, self._words[item])) for item in candidates]
        return [(item, similarity) for item, similarity in similar if similarity >= THRESHOLD]

    def _signature(self, found: list[str]) -> Any:
        signature = self._empty.copy()  # drawing the permutations anew takes longer than all the rest
        signature.update_batch([" ".join(shingle).encode() for shingle in _shingles(found)])
        return signature


def _grams(found: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]


def _shingles(found: Sequence[str]) -> set[tuple[str, ...]]:
    """Word trigrams; a shorter text is one shingle."""
    return set(_grams(found, SHINGLE)) or ({tuple(found)} if found else set())
