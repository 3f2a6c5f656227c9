"""Items of a test split or benchmark that occur in training texts, also reworded or in another order."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from instruct_lit.datasets.near_duplicates import jaccard, plain, shingles, words
from instruct_lit.optional_imports import load

NGRAM = 13  # words, as in the overlap analysis of GPT-3 (Brown et al. 2020, appendix C)
MIN_WORDS = 5  # of an item that is searched as a part of longer texts
THRESHOLD = 0.7  # cosine similarity from which two texts are near-duplicates; docs/evaluating.md has what it finds
CHARACTERS = (4, 4)  # n-grams of the characters of a word
N_AT_ONCE = 512  # texts whose similarities to all items are in memory


class Leak(NamedTuple):
    """An item that occurs in the training texts.

    `kind` is `exact` (the same words), `near` (cosine similarity of at least the threshold) or `ngram` (thirteen
    consecutive words in common, or all words of an item that has five to twelve).
    """

    item: int
    train: int  # index of the training text
    kind: str
    similarity: float  # the cosine of near-duplicates, otherwise the Jaccard similarity over three words


class LeakFinder:
    """Finds items in texts.

    Near-duplicates are close in their character n-grams within words, weighted by their rarity among the items (TF-IDF,
    scikit-learn); the order of the words does not matter.

    Raises: ConfigError when `near` is set and the extra `filters` is not installed.
    """

    def __init__(self, items: Sequence[str], near: bool = True, threshold: float = THRESHOLD) -> None:
        self.items, self.threshold, self._near = items, threshold, None
        self._exact, self._ngrams = defaultdict(list), defaultdict(list)  # by words: the numbers of items
        for number, item in enumerate(items):
            found = words(item)
            self._exact[tuple(found)].append(number)
            scale = 2 if sum(map(len, found)) < 1.5 * len(found) else 1  # Chinese: two characters are a word
            if len(found) >= MIN_WORDS * scale:
                for ngram in _ngrams(found, min(NGRAM * scale, len(found))):
                    self._ngrams[ngram].append(number)
        self._lengths = sorted({len(ngram) for ngram in self._ngrams})
        if near:
            text = load("sklearn.feature_extraction.text", "leaks.near=true", "filters")
            # Hashed, so that an n-gram that no item has counts, as the rarest.
            self._hashing = text.HashingVectorizer(
                analyzer="char_wb", ngram_range=CHARACTERS, preprocessor=_letters, norm=None, alternate_sign=False
            )
            counts = self._hashing.transform([*items, ""])
            self._weights = text.TfidfTransformer(sublinear_tf=True).fit(counts)
            self._near = self._weights.transform(counts).T.tocsr()

    def find(self, texts: Iterable[str]) -> Iterator[Leak]:
        """Every occurrence of an item in the texts, which are read once; one occurrence may be of several kinds."""
        rest, first = iter(texts), 0
        while batch := list(islice(rest, N_AT_ONCE)):
            for place, text in enumerate(batch, start=first):
                found = words(text)
                for number in self._exact.get(tuple(found), ()) if found else ():
                    yield Leak(number, place, "exact", 1.0)
                ngrams = (ngram for n in self._lengths for ngram in _ngrams(found, n))
                for number in {number for ngram in ngrams for number in self._ngrams.get(ngram, ())}:
                    yield Leak(number, place, "ngram", jaccard(shingles(text), shingles(self.items[number])))
            if self._near is not None:
                cosines = (self._weights.transform(self._hashing.transform(batch)) @ self._near).tocoo()
                close = cosines.data >= self.threshold
                for row, number, cosine in zip(
                    cosines.row[close], cosines.col[close], cosines.data[close], strict=True
                ):
                    yield Leak(int(number), first + int(row), "near", min(1.0, float(cosine)))
            first += len(batch)


def question(record: Mapping[str, Any]) -> str:
    """The text by which a leak is searched: earlier turns, instruction and input of a record."""
    before = [text for turn in record.get("history") or () for text in turn]
    return "\n".join((*before, record["instruction"], record.get("input") or ""))


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", " ", plain(text)).strip() or " ".join(text.strip())


def _ngrams(found: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]
