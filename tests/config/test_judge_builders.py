"""Prices of a judge, and which judge must be confirmed before it is asked."""

from pathlib import Path

import pytest

from instruct_lit.config.judge_builders import judge_of, judge_prices
from tests.configs import composed

OPENAI = "https://api.openai.com/v1"


@pytest.mark.parametrize(
    ("url", "model", "given", "prices"),
    [
        (OPENAI, "gpt-4o-mini", None, (0.15, 0.6)),
        (OPENAI, "gpt-4o-mini", [1.0, 2.0], (1.0, 2.0)),
        (OPENAI, "gpt-99", None, None),
        ("https://api.openai.com.example/v1", "gpt-4o-mini", None, None),
        ("http://localhost:8000/v1", "gpt-4o-mini", None, None),
        (None, "model", None, None),
    ],
)
def test_prices_are_given_or_those_of_a_known_model(
    url: str | None, model: str, given: list[float] | None, prices: tuple | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge_prices(url, model, given) == prices
    assert ("prices of gpt-4o-mini as of 2025-04" in capsys.readouterr().out) == (prices == (0.15, 0.6))


@pytest.mark.parametrize(
    ("overrides", "must_be_confirmed"),
    [
        (["judge=openai"], True),
        (["judge=openai", "judge.confirmed=true"], False),
        (["judge=openai", "judge.url=http://localhost:8000/v1"], False),
        (["judge=openai", "judge.url=http://127.0.0.1:8000/v1", "judge.usd_per_million_tokens=[1,1]"], True),
        (["judge=openai", "judge.url=https://localhost.example/v1"], True),
        (["judge=ollama"], False),
    ],
)
def test_a_paid_judge_must_be_confirmed_unless_it_is_on_this_machine(
    overrides: list[str], must_be_confirmed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    config = composed("evaluate", *overrides, "responses=r.jsonl", f"paths.cache={tmp_path}")
    assert judge_of(config.judge, config.paths.cache).must_be_confirmed is must_be_confirmed
