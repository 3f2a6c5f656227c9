"""Two models compared: pairing, both orders, win rates, length control."""

import numpy as np
import pytest

from instruct_lit.errors import DataError
from instruct_lit.evaluation.comparison import (
    Outcome,
    compare_models,
    differences,
    length_controlled,
    match_rows,
    questions_of,
    style_controlled,
    win_rate,
)

pytest.importorskip("sklearn")


def row(instruction: str, response: str, output: str = "yes") -> dict:
    return {"instruction": instruction, "input": "", "output": output, "response": response}


def test_responses_are_paired_by_their_example() -> None:
    a = [row("one", "a1"), row("two", "a2"), row("twice", "a3"), row("twice", "a4")]
    b = [row("twice", "b3"), row("two", "b2"), row("twice", "b4"), row("other", "b5")]
    pairs = [(x["response"], y["response"]) for x, y in match_rows(a, b)]
    assert pairs == [("a2", "b2"), ("a3", "b3"), ("a4", "b4")]
    with pytest.raises(DataError, match="compare: 0 examples in common, at least 2 are needed"):
        match_rows(a[:1], b)
    with pytest.raises(DataError, match="compare: 1 examples in common"):
        match_rows(a[1:2], b)


def test_both_orders_are_asked_and_read_back_by_model() -> None:
    pair = (row("one", "ours"), row("one", "theirs"))
    first, second = questions_of(pair)
    assert (first["answer_a"], first["answer_b"], second["answer_a"], second["answer_b"]) == (
        "ours",
        "theirs",
        "theirs",
        "ours",
    )
    assert Outcome.of("A", "B") == Outcome("a", "a") and Outcome.of("A", "A") == Outcome("a", "b")
    assert Outcome.of("tie", None) == Outcome("tie", None)


@pytest.mark.parametrize(
    ("verdicts", "share"),
    [
        (("a", "a"), 1),
        (("b", "b"), 0),
        (("a", "b"), 0.5),
        (("a", "tie"), 0.75),
        (("b", None), 0.25),
        ((None, None), 0.5),
    ],
)
def test_shares_of_a_win(verdicts: tuple, share: float) -> None:
    assert Outcome(*verdicts).share == share


def test_the_win_rate_has_every_pair_in_its_denominator() -> None:
    outcomes = [Outcome("a", "a")] * 6 + [Outcome("b", "b")] + [Outcome("a", "b")] * 2 + [Outcome(None, "tie")]
    found = win_rate(outcomes, [(3, 3)] * 10)
    assert found["win_rate"]["mean"] == pytest.approx((6 + 2 * 0.5 + 0.5) / 10) and found["win_rate"]["n"] == 10
    assert (found["wins"], found["losses"], found["turned"], found["n_unparsed"], found["n_verdicts"]) == (
        6,
        1,
        2,
        1,
        20,
    )
    # Shown first: 6 of the wins' 12 verdicts, 1 of the loss's 2, and all 4 of the turned ones.
    assert found["first_shown"] == pytest.approx((6 + 1 + 4) / 18)
    assert found["length_controlled_win_rate"] == pytest.approx(found["win_rate"]["mean"], abs=1e-3)


def test_the_interval_of_a_win_rate_of_ties_has_both_sides() -> None:
    """One win and nineteen ties had an interval above one half, at a p-value of 1."""
    found = win_rate([Outcome("a", "a")] + [Outcome("tie", "tie")] * 19, [(3, 3)] * 20)
    assert found["p"] == 1 and found["win_rate"]["low"] < 0.5 < found["win_rate"]["high"] < 0.65
    decided = win_rate([Outcome("a", "a")] * 15 + [Outcome("b", "b")] * 5, [(3, 3)] * 20)["win_rate"]
    assert (decided["low"], decided["high"]) == pytest.approx((0.5090, 0.9134), abs=1e-4)  # of a proportion, exact
    few = win_rate([Outcome("a", "tie"), Outcome("tie", "tie")], [(3, 3)] * 2)["win_rate"]
    assert (few["mean"], few["low"], few["high"]) == (0.625, None, None)


def test_metrics_of_both_and_their_difference() -> None:
    a, b = [row(str(i), "yes") for i in range(8)], [row(str(i), "yes" if i < 2 else "no") for i in range(8)]
    found = differences(match_rows(a, b), ["exact_match"])["exact_match"]
    assert (found["a"], found["b"], found["mean"]) == (1, 0.25, 0.75) and found["p"] == pytest.approx(2 / 64)


def test_a_preference_for_length_is_controlled() -> None:
    """Verdicts that follow length alone: the raw rate says 80 %, at equal length nobody is better."""
    random = np.random.default_rng(1)
    gaps = random.normal(60, 70, 4000)
    shares = (random.random(4000) < 1 / (1 + np.exp(-3 * np.tanh(gaps / gaps.std())))).astype(float)
    lengths = [(int(200 + gap), 200) for gap in gaps]
    assert shares.mean() > 0.7 and length_controlled(shares, lengths) == pytest.approx(0.5, abs=0.04)


def test_a_model_that_is_better_stays_better_at_equal_length() -> None:
    random = np.random.default_rng(2)
    gaps = random.normal(0, 70, 4000)
    wanted = 0.75
    logit = np.log(wanted / (1 - wanted)) + 2 * np.tanh(gaps / gaps.std())
    shares = (random.random(4000) < 1 / (1 + np.exp(-logit))).astype(float)
    assert length_controlled(shares, [(int(200 + gap), 200) for gap in gaps]) == pytest.approx(wanted, abs=0.03)


def test_the_length_controlled_rate_of_unanimous_verdicts_and_equal_lengths() -> None:
    assert length_controlled(np.ones(5), [(3, 1)] * 5) == 1 and length_controlled(np.full(5, 0.5), [(3, 1)] * 5) == 0.5
    assert length_controlled(np.array([1.0, 0.5, 0.0, 1.0]), [(7, 7)] * 4) == pytest.approx(0.625, abs=1e-3)


def test_a_preference_for_style_is_controlled() -> None:
    """Verdicts that follow lists and bold text alone."""
    random = np.random.default_rng(3)
    plain, fancy = "some words in a row and some more", "- **some** words\n- in a **row**\n# and some more"
    texts = [
        (fancy if random.random() < 0.8 else plain, fancy if random.random() < 0.2 else plain) for _ in range(2000)
    ]
    logits = np.array([2.0 * ((a == fancy) - (b == fancy)) for a, b in texts])
    shares = (random.random(2000) < 1 / (1 + np.exp(-logits))).astype(float)
    assert shares.mean() > 0.7 and style_controlled(shares, texts) == pytest.approx(0.5, abs=0.05)
    assert style_controlled(np.array([1.0, 0.5, 0.0, 1.0]), [("a", "b")] * 4) == pytest.approx(0.625, abs=1e-3)


def scored(name: str, n_right: int) -> list[dict]:
    return [
        {**row(str(i), "yes"), "scores": {name: float(i < n_right), "length_ratio": float(i % 7)}} for i in range(30)
    ]


def test_ranks_are_intervals_and_only_where_models_differ() -> None:
    matched = match_rows(scored("exact_match", 30), scored("exact_match", 28), scored("exact_match", 10))
    found = compare_models(["a", "b", "c"], matched, ["exact_match", "length_ratio"])
    exact = found["exact_match"]
    assert exact["ranks"] == {"a": (1, 2), "b": (1, 2), "c": (3, 3)}
    assert [(pair["a"], pair["b"]) for pair in exact["pairs"]] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert exact["pairs"][0]["p"] == exact["pairs"][0]["p_holm"] == 0.5  # the largest is not corrected
    assert exact["pairs"][1]["p_holm"] == pytest.approx(3 * 2 / 2**20)
    assert exact["models"]["b"]["mean"] == pytest.approx(28 / 30) and found["length_ratio"]["ranks"] is None
    looping = match_rows(scored("looping", 30), scored("looping", 0))
    assert compare_models(["a", "b"], looping, ["looping"])["looping"]["ranks"] == {"a": (2, 2), "b": (1, 1)}
