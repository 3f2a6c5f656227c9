"""Near-duplicate texts: MinHash and locality-sensitive hashing (Broder 1997) through datasketch."""

import re
import unicodedata
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import regex

from instruct_lit.errors import ConfigError
from instruct_lit.optional_imports import load
from instruct_lit.words import WORD

THRESHOLD = 0.8  # Jaccard similarity from which two texts are near-duplicates
SHINGLE = 3  # words
N_PERMUTATIONS = 128  # of a signature; the estimate of a similarity has a standard error of about 0.04
_INVISIBLE = regex.compile(r"\p{Cf}+")  # zero-width spaces and joiners, soft hyphens
_WIDTH = re.compile("[\uff01-\uffee\u3000]+")  # full and half width; other forms, such as ², mean something


def words(text: str) -> list[str]:
    """The words of a text as `plain` writes it; its characters in scripts without spaces, and where there are none."""
    ascii_words = re.findall(r"[^\W_]+", text.lower()) if text.isascii() else None  # five times as fast
    return ascii_words or WORD.findall(plain(text)) or list(text.strip())


def plain(text: str) -> str:
    """The text in one case, width and form of Unicode, whichever it was typed in, without invisible characters."""
    usual = _WIDTH.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    return _INVISIBLE.sub("", unicodedata.normalize("NFC", usual)).casefold()


class NearDuplicateIndex:
    """Finds the added texts whose Jaccard similarity to a text, over word shingles, is at least `threshold`.

    Similarities are estimated from signatures, about a kilobyte per text.

    Raises: ConfigError without the extra `filters`, naming `what` needs it, and for an impossible threshold.
    """

    def __init__(self, threshold: float = THRESHOLD, what: str = "near-duplicates") -> None:
        datasketch = load("datasketch", what, "filters")
        if not 0 < threshold <= 1:
            raise ConfigError(f"data.filters.near_duplicates.threshold={threshold}: must be above 0 and at most 1")
        self.threshold = threshold
        # Candidates share a band of the signature; a higher weight on false negatives makes the bands miss fewer.
        self._index = datasketch.MinHashLSH(threshold, N_PERMUTATIONS, weights=(0.2, 0.8))
        self._empty = datasketch.MinHash(N_PERMUTATIONS, seed=1)  # copied, since drawing permutations is slow
        self._added: list[Any] = []  # signatures

    def add(self, text: str, only_new: bool = False) -> list[int]:
        """The numbers of the added texts that this one nearly duplicates; it is added under the next number.

        With `only_new` a near-duplicate is not added.
        """
        signature = self._empty.copy()
        signature.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in shingles(text)])
        candidates = sorted(self._index.query(signature))
        matches = [n for n in candidates if float(signature.jaccard(self._added[n])) >= self.threshold]
        if not (matches and only_new):
            self._index.insert(len(self._added), signature)
            self._added.append(signature)
        return matches


def shingles(text: str) -> set[str]:
    """Every run of three words; a shorter text is one shingle."""
    found = words(text)
    return {" ".join(found[i : i + SHINGLE]) for i in range(max(1, len(found) - SHINGLE + 1))}


def jaccard(a: Collection[str], b: Collection[str]) -> float:
    """Jaccard similarity of two sets of shingles."""
    ours, theirs = set(a), set(b)
    return len(ours & theirs) / len(ours | theirs) if ours or theirs else 1.0


def near_duplicate_groups(texts: Iterable[str]) -> np.ndarray:
    """A group number for each text `(n,)`: near-duplicates, also through a chain of them, share one."""
    index = NearDuplicateIndex(what="data.keep_together=near_duplicates")
    links = [(number, near) for number, text in enumerate(texts) for near in (number, *index.add(text))]
    rows, columns = np.array(links, dtype=np.int64).reshape(-1, 2).T
    sparse = load("scipy.sparse", "data.keep_together=near_duplicates", "filters")
    _, groups = sparse.csgraph.connected_components(sparse.coo_array((np.ones(len(rows)), (rows, columns))))
    return groups.astype(np.int64)
