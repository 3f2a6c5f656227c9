"""Categories of examples, their losses, and the lines of their table."""

import math

import pytest

from instruct_lit.errors import ConfigError
from instruct_lit.evaluation.categories import by_category, category, check_fields, lines, losses

ROWS = [
    {"input": "", "output": "x", "level": 1, "scores": {"exact_match": 1.0}, "loss": 1.0, "n_response_tokens": 1},
    {
        "input": "y",
        "output": "x " * 20,
        "level": 2,
        "scores": {"exact_match": 1.0},
        "loss": 2.0,
        "n_response_tokens": 3,
    },
    {"input": "y", "output": "x " * 99, "scores": {"exact_match": 0.0}, "loss": 4.0, "n_response_tokens": 1},
]


@pytest.mark.parametrize(
    ("n_words", "bucket"),
    [
        (0, "0 to 5 words"),
        (5, "0 to 5 words"),
        (6, "6 to 15 words"),
        (16, "16 to 40 words"),
        (40, "16 to 40 words"),
        (41, "over 40 words"),
    ],
)
def test_length_buckets(n_words: int, bucket: str) -> None:
    assert category({"output": "word " * n_words}, "length") == bucket


def test_each_category_has_its_mean_loss_and_perplexity() -> None:
    found = by_category(ROWS, "input", "exact_match")
    assert found["with input"]["exact_match"]["mean"] == 0.5 and found["without input"]["n"] == 1
    assert found["with input"]["loss"]["mean"] == pytest.approx((2.0 * 3 + 4.0) / 4)  # by token, not by example
    assert found["with input"]["perplexity"]["mean"] == pytest.approx(math.exp(2.5))
    assert list(by_category(ROWS, "level", "exact_match")) == ["1", "2", "none"]
    assert list(by_category(ROWS, "length", "exact_match")) == ["0 to 5 words", "16 to 40 words", "over 40 words"]


def test_the_interval_of_the_perplexity_is_that_of_the_loss() -> None:
    few = losses(ROWS)
    assert few["loss"]["low"] is None and few["perplexity"]["low"] is None
    found = losses(ROWS * 4, seed=1)
    assert {key: math.exp(value) for key, value in found["loss"].items() if key != "n"} == pytest.approx(
        {key: value for key, value in found["perplexity"].items() if key != "n"}
    )
    assert losses([{**ROWS[0]}, {"output": "no loss"}]) == {} and losses([]) == {}


def test_fields_are_checked() -> None:
    check_fields(ROWS, ["input", "length", "level"])
    with pytest.raises(ConfigError, match="by=colour: no record has such a field; allowed are length, input, level"):
        check_fields(ROWS, ["colour"])
    many = [{"output": "x", "id": number} for number in range(51)]
    with pytest.raises(ConfigError, match="by=id: 51 different values; at most 50"):
        check_fields(many, ["id"])


def test_the_table_has_the_metrics_before_the_categories() -> None:
    interval = {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 1}
    evaluation = {
        "metrics": {"a": interval, "b": interval},
        "losses": {"loss": interval},
        "by": {"f": {"v": {"n": 1, "a": interval}}},
    }
    assert [name for name, _ in lines(evaluation)] == ["a", "b", "loss", "  a, v"]
    evaluation["by"]["g"] = {"w": {"n": 1, "a": interval}}
    assert [name for name, _ in lines(evaluation)][3:] == ["  a, f: v", "  a, g: w"]
