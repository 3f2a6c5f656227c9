"""Metrics as people read them."""

import math

import pytest

from instruct_lit.evaluation.metrics import METRICS
from instruct_lit.reports.metrics import bounds, interval, meaning, quantity


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("matrix_flops_per_s", 102028554434.0, "102.0 GFLOP/s"), ("peak_memory_bytes", 1_234_000_000, "1.2 GB"),
     ("seconds", 12.2197, "12.2 s"), ("waiting_s", None, ""), ("tokens_per_s", 10126.5, "10,126"), ("val/loss", 0.5, "0.5000")],
)  # fmt: skip
def test_figures_have_the_unit_of_their_name(name: str, value: float | None, text: str) -> None:
    assert quantity(value, name) == text


def test_an_interval_that_is_not_there_has_its_reason() -> None:
    assert interval({"low": 0.1, "high": 0.2}, "%.1f") == "0.1 to 0.2"
    none = {"low": None, "high": None}
    assert [interval({**none, **n}) for n in ({"n": 99}, {"n": 3}, {})] == [
        "all equal",
        "too few to say",
        "few or equal",  # a figure of metrics.json
    ]


def test_every_metric_of_responses_has_a_meaning_and_bounds() -> None:
    for name in METRICS:
        assert meaning(name) and bounds(f"val/{name}")[0] == 0.0, name
    assert bounds("test/perplexity") == (1.0, math.inf) and bounds("tokens_per_s") == (-math.inf, math.inf)
    assert meaning("test/token_f1") == meaning("token_f1") and meaning("unknown") == ""
