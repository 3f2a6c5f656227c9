"""Comparison of models on the same examples: differences, ranks, win rates, significance."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import multimode
from typing import Any, Self

import numpy as np

from instruct_lit.errors import DataError
from instruct_lit.evaluation.judging.judge import MAX_UNPARSED
from instruct_lit.evaluation.judging.prompt import texts_of
from instruct_lit.evaluation.metrics import BEYOND_SHARES, METRICS, Row, comparable, concerns, higher_is_better
from instruct_lit.evaluation.statistics import difference, holm, interval, paired_interval
from instruct_lit.optional_imports import load

MIN_PAIRS = 2
Pair = tuple[Row, Row]


def match_rows(*sides: Sequence[Row]) -> list[tuple[Row, ...]]:
    """The responses of all sides to the same example; examples that a side lacks are left out.

    Raises: DataError with fewer than `MIN_PAIRS` common examples.
    """

    def keyed(rows: Sequence[Row]) -> dict[tuple[str, int], Row]:
        seen: Counter[str] = Counter()  # the same example may occur twice
        keys: dict[tuple[str, int], Row] = {}
        for row in rows:
            text = json.dumps(texts_of({**row, "response": ""}))
            keys[text, seen[text]] = row
            seen[text] += 1
        return keys

    maps = [keyed(rows) for rows in sides]
    matched = [tuple(rows[key] for rows in maps) for key in maps[0] if all(key in rows for rows in maps)]
    if len(matched) < MIN_PAIRS:
        raise DataError(
            f"compare: {len(matched)} examples in common, at least {MIN_PAIRS} are needed; all must respond to the "
            "same split (see data=, split=)"
        )
    return matched


def compare_rows(
    rows_a: Sequence[Row], rows_b: Sequence[Row], metrics: Sequence[str], seed: int = 0
) -> tuple[list[Pair], dict[str, Any]]:
    """The pairs of two models' responses (`match_rows`), and the figures of `evaluation.json`."""
    pairs = [(a, b) for a, b in match_rows(rows_a, rows_b)]
    names = comparable(metrics, pairs)
    n_unpaired = len(rows_a) + len(rows_b) - 2 * len(pairs)
    return pairs, {"n_pairs": len(pairs), "n_unpaired": n_unpaired, "differences": differences(pairs, names, seed)}


def compare_models(
    labels: Sequence[str], matched: Sequence[tuple[Row, ...]], metrics: Sequence[str], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """For each metric the mean of every model, the differences of all pairs of models, and the ranks.

    The p-values of a metric are adjusted for the number of pairs (`p_holm`). A rank is the interval from one more than
    the number of models that are significantly better to the number of those that are not significantly worse, at 5 %
    for all models together (Mogstad et al. 2024). Metrics without a direction, or without a significant difference,
    have no ranks.

    Args:
        matched: for each example the rows of all models with their `scores`.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in metrics:
        values = np.array(
            [[r["scores"][name] for r in rows] for rows in matched if all(name in r["scores"] for r in rows)]
        ).T
        if not values.size:
            continue  # a metric that concerns no example
        shares = name not in BEYOND_SHARES
        pairs = [
            {"a": a, "b": b, **difference(values[i] - values[j], seed, shares)}
            for i, a in enumerate(labels)
            for j, b in enumerate(labels[i + 1 :], i + 1)
        ]
        for pair, adjusted in zip(pairs, holm([pair["p"] for pair in pairs]), strict=True):
            pair["p_holm"] = adjusted
        means = {
            label: interval(of_model.tolist(), seed, shares=shares)
            for label, of_model in zip(labels, values, strict=True)
        }
        found[name] = {"models": means, "pairs": pairs, "ranks": _ranks(labels, pairs, higher_is_better(name))}
    return found


def _ranks(
    labels: Sequence[str], pairs: Sequence[Mapping[str, Any]], is_better_higher: bool | None
) -> dict[str, tuple[int, int]] | None:
    clear = [pair for pair in pairs if pair["p_holm"] < 0.05]
    if not clear or is_better_higher is None:
        return None
    winners = [(p["a"], p["b"]) if (p["mean"] > 0) == is_better_higher else (p["b"], p["a"]) for p in clear]
    wins, losses = Counter(better for better, _ in winners), Counter(worse for _, worse in winners)
    return {label: (1 + losses[label], len(labels) - wins[label]) for label in labels}


def differences(pairs: Sequence[Pair], metrics: Sequence[str], seed: int = 0) -> dict[str, dict[str, Any]]:
    """For each metric the means of both, and the mean of the first minus the second with interval and p-value."""
    found = {}
    for name in metrics:
        paired = [pair for pair in pairs if all(concerns(name, row) for row in pair)]
        if not paired:
            continue
        a, b = (np.array([METRICS[name](pair[side]) for pair in paired]) for side in (0, 1))
        change = difference(a - b, seed, name not in BEYOND_SHARES)
        found[name] = {"a": float(a.mean()), "b": float(b.mean()), **change}
    return found


@dataclass(frozen=True)
class Outcome:
    """The verdicts on a pair (`a`, `b`, `tie`), with model A's response shown first and shown second.

    None is an unparsed verdict. It counts as a tie, so that every pair stays in the denominator.
    """

    a_first: str | None
    b_first: str | None

    @classmethod
    def of(cls, first: str | None, second: str | None) -> Self:
        """The verdicts `A`, `B`, `tie` or None on the responses in the orders of `questions_of`."""
        names = {"A": "a", "B": "b", "tie": "tie"}
        turned = {"A": "b", "B": "a", "tie": "tie"}
        return cls(names.get(first or ""), turned.get(second or ""))

    @classmethod
    def majority(cls, outcomes: Sequence[Self]) -> Self:
        """In each order the most frequent verdict of several judges; a tie where two are equally frequent."""
        both = (multimode(getattr(outcome, order) for outcome in outcomes) for order in ("a_first", "b_first"))
        return cls(*(modes[0] if len(modes) == 1 else "tie" for modes in both))

    @property
    def share(self) -> float:
        """Model A's share of the win: 1, 0, and 1/2 for ties and for verdicts that depend on the order."""
        return sum({"a": 1.0, "b": 0.0}.get(verdict or "tie", 0.5) for verdict in (self.a_first, self.b_first)) / 2


def win_rate(
    outcomes: Sequence[Outcome],
    lengths: Sequence[tuple[int, int]],
    seed: int = 0,
    n_equal: int = 0,
    shares: Sequence[float] | None = None,
    max_unparsed: float = MAX_UNPARSED,
) -> dict[str, Any]:
    """Win rate of model A over all pairs, raw and length-controlled, with its components.

    `wins` and `losses` hold in both orders, `turned` are the pairs whose winner depends on the order, `first_shown`
    is the share of decided verdicts for the response shown first: 1/2 for a judge without position bias. `p` is the
    p-value of the paired test of the shares against 1/2. A larger share of unparsed verdicts than `max_unparsed` makes
    no win rate.

    Args:
        lengths: characters of the two responses of each pair.
        n_equal: pairs of equal responses, which are ties without a verdict.
        shares: model A's shares of the win where they are not those of the outcomes.
    """
    won = np.array([outcome.share for outcome in outcomes] if shares is None else shares)
    both = [(outcome.a_first, outcome.b_first) for outcome in outcomes]
    verdicts = [verdict for of_pair in both for verdict in of_pair]
    first_shown = [verdict == "ab"[i % 2] for i, verdict in enumerate(verdicts) if verdict in ("a", "b")]
    found = {
        "wins": both.count(("a", "a")),
        "losses": both.count(("b", "b")),
        "turned": both.count(("a", "b")) + both.count(("b", "a")),
        "n_unparsed": verdicts.count(None),
        "n_verdicts": len(verdicts) - 2 * n_equal,
        "first_shown": float(np.mean(first_shown)) if first_shown else None,
        "p": difference(won - 0.5, seed)["p"],
    }
    if found["n_unparsed"] > max_unparsed * found["n_verdicts"]:
        return {"win_rate": None, "length_controlled_win_rate": None, **found}
    controlled = length_controlled(won, lengths)
    rate = interval(won.tolist(), seed)
    if not np.isin(won, (0, 1)).all():  # ties are between the two: the interval of paired differences from 1/2
        lead = paired_interval(2 * won - 1, seed)
        rate |= {side: None if lead[side] is None else (1 + lead[side]) / 2 for side in ("low", "high")}
    return {"win_rate": rate, "length_controlled_win_rate": controlled, **found}


def length_controlled(shares: np.ndarray, lengths: Sequence[tuple[int, int]]) -> float:
    """The expected win rate for responses of equal length.

    As in AlpacaEval 2 (Dubois et al. 2024) the term is tanh of the difference in length over its standard deviation.
    AlpacaEval's third term, the difficulty of each instruction, needs a whole leaderboard, so it is left out.
    """
    gaps = np.array([a - b for a, b in lengths], dtype=np.float64)
    spread = gaps.std()
    return _controlled(shares, np.tanh(gaps / spread)[:, None] if spread > 0 else np.zeros((len(gaps), 1)))


_MARKDOWN = (r"^#{1,6}\s", r"^\s*(?:\d+\.|[-*+])\s", r"\*\*[^*\n]+\*\*|__[^_\n]+__")  # headers, list items, bold text
_CODE_BLOCK = re.compile(r"```[^`]*```")


def style_controlled(shares: np.ndarray, texts: Sequence[tuple[str, str]]) -> float:
    """The expected win rate for responses of equal length and markdown.

    As in Arena-Hard-Auto the terms are the relative difference in length, here in words, and those in headers, list
    items and bold text per word, outside of code blocks, each over its standard deviation.
    """

    def style(text: str) -> list[float]:
        n_words, plain = len(text.split()), _CODE_BLOCK.sub("", text)
        return [n_words, *(len(re.findall(mark, plain, re.MULTILINE)) / (n_words + 1) for mark in _MARKDOWN)]

    a, b = (np.array([style(pair[side]) for pair in texts], dtype=np.float64) for side in (0, 1))
    gaps = (a - b) / np.maximum(a + b + [0, 1, 1, 1], 1)
    spread = gaps.std(0)
    return _controlled(shares, gaps / np.where(spread > 0, spread, np.inf))


def _controlled(shares: np.ndarray, terms: np.ndarray) -> float:
    """The share of the win that a logistic regression predicts where all `terms` `(n, n_terms)` are 0.

    Its constant is the models' difference. The weak L2 penalty (C = 10) keeps the fit finite where all verdicts agree.
    """
    if np.all(shares == shares[0]):
        return float(shares[0])
    # A share s of a win counts as s won pairs and 1 - s lost ones.
    features = np.concatenate([terms, terms])
    targets = np.repeat([1, 0], len(shares))
    regression = load("sklearn.linear_model", "compare", "judge").LogisticRegression
    model = regression(C=10.0).fit(features, targets, sample_weight=np.concatenate([shares, 1 - shares]))
    return float(model.predict_proba(np.zeros((1, terms.shape[1])))[0, 1])


def questions_of(pair: Pair) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """The texts of the pairwise prompt in both orders."""
    a, b = (row["response"] for row in pair)
    common = texts_of(pair[0])
    return {**common, "answer_a": a, "answer_b": b}, {**common, "answer_a": b, "answer_b": a}
