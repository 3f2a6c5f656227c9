"""What can be said of an answer by counting: against the wanted one, and without it; means with intervals.

The measures against a reference are those of the field: SQuAD's normalised exact match and token F1 (Rajpurkar et al.
2016), ROUGE-L (Lin 2004) through rouge-score and chrF (Popović 2015) through sacrebleu, both in the extra `evaluate`.
"""

from __future__ import annotations

import logging
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from instruct_lit.core.generation.responses import exact
from instruct_lit.core.optional_imports import load
from instruct_lit.errors import ConfigError

Row = Mapping[str, Any]
Interval = dict[str, float]  # mean, low, high, n
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
N_RESAMPLES = 2000


def normalised(text: str) -> str:
    """Lower case without punctuation, articles and repeated white space, as SQuAD compares answers."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_normalised(row: Row) -> float:
    """1 where both are the same after normalising."""
    return float(normalised(row["response"]) == normalised(row["output"]))


def token_f1(row: Row) -> float:
    """Harmonic mean of precision and recall over the normalised words; two empty texts agree."""
    found, wanted = normalised(row["response"]).split(), normalised(row["output"]).split()
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))


def rouge_l(row: Row) -> float:
    """F-measure of the longest common subsequence of words."""
    return _rouge().score(row["output"], row["response"])["rougeL"].fmeasure


def chrf(row: Row) -> float:
    """Character n-gram F-score, between 0 and 1."""
    return _chrf().sentence_score(row["response"], [row["output"]]).score / 100


def ended(row: Row) -> float:
    """1 where the model ended the answer itself."""
    return float(row.get("finish_reason", "stop") == "stop")


def empty(row: Row) -> float:
    """1 where there is nothing but white space."""
    return float(not row["response"].strip())


def distinct_2(row: Row) -> float:
    """Share of different pairs of neighbouring words (Li et al. 2016); 1 for texts too short to repeat."""
    words = row["response"].split()
    pairs = list(pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def looping(row: Row) -> float:
    """1 where the end of the answer is the same piece of four characters or more three times over."""
    ends = (row["response"], row["response"].rstrip())  # the white space behind the last piece may belong to it or not
    return float(any(t[-n:] == t[-2 * n : -n] == t[-3 * n : -2 * n] for t in ends for n in range(4, len(t) // 3 + 1)))


def copied(row: Row) -> float:
    """1 where the answer repeats the instruction or the input, though that is not what is wanted."""
    response = normalised(row["response"])
    given = [normalised(row[field]) for field in ("instruction", "input") if row.get(field)]
    return float(bool(response) and any(response == g for g in given) and response != normalised(row["output"]))


def length_ratio(row: Row) -> float:
    """Characters of the answer per character of the wanted one."""
    return len(row["response"]) / max(1, len(row["output"]))


WITHOUT_EXTRA: dict[str, Callable[[Row], float]] = {
    "exact_match": exact,
    "exact_match_normalised": exact_normalised,
    "token_f1": token_f1,
    "ended": ended,
    "empty": empty,
    "distinct_2": distinct_2,
    "looping": looping,
    "copied_prompt": copied,
    "length_ratio": length_ratio,
}
METRICS: dict[str, Callable[[Row], float]] = {**WITHOUT_EXTRA, "rouge_l": rouge_l, "chrf": chrf}
# length_ratio is best at 1, so it has no direction.
HIGHER_IS_BETTER = {
    name: name not in ("empty", "looping", "copied_prompt") for name in METRICS if name != "length_ratio"
}


def check_metrics(names: Sequence[str]) -> None:
    """Raise ConfigError for a name that does not exist and for a metric whose library is not installed."""
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"metrics={name}: allowed are {', '.join(METRICS)}")
        METRICS[name]({"instruction": "", "output": "a", "response": "a"})


def applicable(names: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The metrics that all rows can be asked for: of answers out of a file it is mostly unknown how they ended."""
    known = all("finish_reason" in row for row in rows)
    return [name for name in names if name != "ended" or known]


def score(rows: Sequence[Row], names: Sequence[str], seed: int = 0) -> dict[str, Interval]:
    """Mean of each named metric over the rows, with the ends of its 95 % bootstrap interval."""
    return {name: interval([METRICS[name](row) for row in rows], seed) for name in names}


def interval(values: Sequence[float], seed: int = 0, weights: Sequence[float] | None = None) -> Interval:
    """Mean, weighted where weights are given, and the 2.5th and 97.5th percentile of resampled means (Efron 1979)."""
    sample = np.asarray(values, dtype=np.float64)
    weight = np.ones_like(sample) if weights is None else np.asarray(weights, dtype=np.float64)
    random = np.random.default_rng(seed)
    means = np.empty(N_RESAMPLES)
    n_at_once = max(1, 2**20 // len(sample))  # resamples, in some tens of megabytes
    for i in range(0, N_RESAMPLES, n_at_once):
        drawn = random.integers(0, len(sample), (len(means[i : i + n_at_once]), len(sample)))
        means[i : i + n_at_once] = np.average(sample[drawn], axis=1, weights=weight[drawn])
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(np.average(sample, weights=weight)), "low": float(low), "high": float(high), "n": len(sample)}


_loaded: dict[str, Any] = {}


def _rouge() -> Any:
    if "rouge" not in _loaded:
        logging.getLogger("absl").setLevel(logging.WARNING)  # it tells which tokenizer it takes
        scorer = load("rouge_score.rouge_scorer", "metrics=rouge_l", "evaluate")
        _loaded["rouge"] = scorer.RougeScorer(["rougeL"], use_stemmer=False)
    return _loaded["rouge"]


def _chrf() -> Any:
    if "chrf" not in _loaded:
        _loaded["chrf"] = load("sacrebleu.metrics", "metrics=chrf", "evaluate").CHRF()
    return _loaded["chrf"]
