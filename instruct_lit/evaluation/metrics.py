"""Metrics of a response, with and without its reference.

Against the reference: SQuAD's normalised exact match and token F1 (Rajpurkar et al. 2016), ROUGE-L (Lin 2004) and chrF
(Popović 2015), the last through sacrebleu (extra `evaluate`).
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from instruct_lit.core.generation.responses import exact
from instruct_lit.errors import ConfigError
from instruct_lit.evaluation import answer_parts, checks
from instruct_lit.evaluation.statistics import Interval, interval
from instruct_lit.optional_imports import load
from instruct_lit.words import WORD, words

Row = Mapping[str, Any]
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case without punctuation, articles and repeated white space, as in SQuAD."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match_normalised(row: Row) -> float:
    """1 where response and reference are equal after normalisation."""
    return float(normalised(row["response"]) == normalised(row["output"]))


def token_f1(row: Row) -> float:
    """Harmonic mean of precision and recall over the normalised words; 1 for two empty texts."""
    return overlap(words(normalised(row["response"])), words(normalised(row["output"])))


def overlap(found: Sequence[str], reference: Sequence[str]) -> float:
    """Harmonic mean of the precision and the recall of words; 1 for two empty lists."""
    if not found or not reference:
        return float(found == reference)
    common = sum((Counter(found) & Counter(reference)).values())
    return 2 * common / (len(found) + len(reference))


def rouge_l(row: Row) -> float:
    """F-measure of the longest common subsequence of words of letters and digits, of every script.

    The sequence is counted a bit a word (Hyyrö 2004): a table of all pairs of words takes seconds for a thousand each.
    """
    found, reference = (WORD.findall(row[field].lower()) for field in ("response", "output"))
    places: Counter[str] = Counter()
    for i, word in enumerate(reference):
        places[word] |= 1 << i
    left = everything = (1 << len(reference)) - 1
    for word in found:
        hits = left & places[word]
        left = (left + hits | left - hits) & everything
    return 2 * (len(reference) - left.bit_count()) / max(1, len(found) + len(reference))


def chrf(row: Row) -> float:
    """Character n-gram F-score, between 0 and 1."""
    return _chrf().sentence_score(row["response"], [row["output"]]).score / 100


def ended(row: Row) -> float:
    """1 where the model ended the response itself."""
    return float(row.get("finish_reason", "stop") == "stop")


def empty(row: Row) -> float:
    """1 for a response of nothing but white space."""
    return float(not row["response"].strip())


def distinct_2(row: Row) -> float:
    """Distinct bigrams of words per bigram (Li et al. 2016); 1 for texts without any."""
    pairs = list(pairwise(words(row["response"])))
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def looping(row: Row) -> float:
    """1 where the response ends with the same text of at least four characters three times in a row."""
    ends = (row["response"], row["response"].rstrip())  # trailing white space may belong to the repeated text or not
    return float(any(t[-n:] == t[-2 * n : -n] == t[-3 * n : -2 * n] for t in ends for n in range(4, len(t) // 3 + 1)))


def copied_prompt(row: Row) -> float:
    """1 where the response repeats the instruction or the input, unless the reference does."""
    response = normalised(row["response"])
    given = [normalised(row[field]) for field in ("instruction", "input") if row.get(field)]
    return float(bool(response) and any(response == g for g in given) and response != normalised(row["output"]))


def length_ratio(row: Row) -> float:
    """Characters of the response per character of the reference."""
    return len(row["response"]) / max(1, len(row["output"]))


_OF_RESPONSE = (exact_match_normalised, token_f1, ended, empty, distinct_2, looping, copied_prompt, length_ratio)
WITHOUT_EXTRA: dict[str, Callable[[Row], float]] = {"exact_match": exact, **{m.__name__: m for m in _OF_RESPONSE}}


def _of_final(metric: Callable[[Row], float]) -> Callable[[Row], float]:
    """The metric of the final answer: without thoughts, with calls as JSON."""
    return lambda row: metric(answer_parts.final(row))


_WHOLE = ("ended", "looping")  # concern thoughts too
_OF_TEXT = {**WITHOUT_EXTRA, "checks": checks.passed, "rouge_l": rouge_l, "chrf": chrf}
METRICS: dict[str, Callable[[Row], float]] = {
    **{name: metric if name in _WHOLE else _of_final(metric) for name, metric in _OF_TEXT.items()},
    **{name: metric for name, (metric, _) in answer_parts.METRICS.items()},
}
_CONCERNED = {"checks": checks.has_checks, **{name: rows for name, (_, rows) in answer_parts.METRICS.items()}}
BEYOND_SHARES = ("length_ratio", "thought_words", "unreadable_calls", "judge")  # may be above 1
# How the names of metrics end of which less is better, and of which more is, in this order; behind a `/` or a `_`.
_LESS = (
    "empty", "looping", "copied_prompt", "unreadable_calls", "loss", "loss_change", "perplexity", "bits_per_byte",
    "nats", "edit_distance", "levenshtein", "ter", "wer", "cer", "brier_score", "seconds", "(?<!per_)s", "memory_bytes",
    "positions_per_token",
)  # fmt: skip
_OF_REFERENCE = ("exact_match", "exact_match_normalised", "token_f1", "rouge_l", "chrf", "length_ratio")
_NEITHER = ("length_ratio", "thought_words")  # the former is best at 1
_MORE = (*(name for name in METRICS if name not in _LESS + _NEITHER), "judge", "per_s")


def check_metrics(names: Sequence[str]) -> None:
    """Raise ConfigError for an unknown name and for a metric whose library is not installed."""
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"metrics={name}: allowed are {', '.join(METRICS)}")
        METRICS[name]({"instruction": "", "output": "a", "response": "a"})


def higher_is_better(name: str) -> bool | None:
    """Whether more of a metric is better, by its name with or without a split; None where that is not known.

    A benchmark's is `benchmark/<task>`, or `benchmark/<task>/<metric>` where less is better.
    """
    if name.startswith("benchmark/"):
        return name.count("/") == 1
    name = re.sub("(?<=/loss)/.*", "", name)  # of one data set of a mixture
    less, more = (re.search(f"(^|[/_])({'|'.join(ends)})$", name) for ends in (_LESS, _MORE))
    return False if less else True if more else None


def applicable(names: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The metrics that the rows allow.

    `ended` needs a finish reason in all of them, which responses of a file mostly lack, `checks` a row with checks,
    those of thoughts and calls a row with some, those against the reference one with a reference.
    """
    usable = {name: any(map(rows_of, rows)) for name, rows_of in _CONCERNED.items() if name in names}
    usable |= dict.fromkeys(_OF_REFERENCE, any(row.get("output") != "" for row in rows))
    usable["ended"] = all("finish_reason" in row for row in rows)
    return [name for name in names if usable.get(name, True)]


def comparable(names: Sequence[str], examples: Sequence[Sequence[Row]]) -> list[str]:
    """The metrics that are defined for all responses to at least one example.

    Raises: ConfigError where there is none.
    """
    found = applicable(names, [row for responses in examples for row in responses])
    found = [name for name in found if any(all(concerns(name, row) for row in responses) for responses in examples)]
    if not found:
        raise ConfigError(
            f"metrics=[{', '.join(names)}]: there is no example whose responses all have what they count (wanted "
            "answers, checks, thoughts, calls, finish reasons); add empty"
        )
    return found


def concerns(name: str, row: Row) -> bool:
    """Whether a metric is defined for a row: `checks` is for rows that have some, for example."""
    return name not in _CONCERNED or _CONCERNED[name](row)


def score(rows: Sequence[Row], names: Sequence[str], seed: int = 0) -> dict[str, Interval]:
    """Mean of each named metric over the rows that it concerns, with its 95 % interval."""
    values = {name: [METRICS[name](row) for row in rows if concerns(name, row)] for name in names}
    return {name: interval(own, seed, shares=name not in BEYOND_SHARES) for name, own in values.items() if own}


@cache
def _chrf() -> Any:
    return load("sacrebleu.metrics", "metrics=chrf", "evaluate").CHRF()
