"""Ratings out of battles: right on strengths that are known, the known order on real ones, bad lines named."""

import gzip
import json
import random
from pathlib import Path

import pytest

from instruct_lit.errors import DataError
from instruct_lit.suites.ratings import Battle, leaderboard, read_battles

pytest.importorskip("evalica")


def test_known_strengths_come_back() -> None:
    draw, strength = random.Random(1), {"weak": 1.0, "middle": 3.0, "strong": 10.0}
    names, battles = list(strength), []
    for _ in range(4000):
        a, b = draw.sample(names, 2)
        first = draw.random() < strength[a] / (strength[a] + strength[b])
        battles.append(Battle(a, b, "model_a" if first else "model_b"))
    ratings = {r.model: r for r in leaderboard(battles)}
    assert list(ratings) == ["strong", "middle", "weak"]
    assert ratings["strong"].bradley_terry - ratings["weak"].bradley_terry == pytest.approx(400, abs=40)  # ten to one
    assert sum(r.bradley_terry for r in ratings.values()) == pytest.approx(3000)
    for rating in ratings.values():
        assert rating.low < rating.bradley_terry < rating.high and rating.high - rating.low < 60
    assert sum(r.n_battles for r in ratings.values()) == 8000
    assert ratings["strong"].elo > ratings["middle"].elo > ratings["weak"].elo


def test_ties_are_half_a_win_for_each() -> None:
    battles = [
        Battle("x", "y", "tie"),
        Battle("y", "x", "both_bad"),
        Battle("x", "y", "model_a"),
        Battle("x", "y", "model_b"),
    ]
    ratings = leaderboard(battles, n_resamples=20)
    assert {r.win_rate for r in ratings} == {0.5}
    assert ratings[0].bradley_terry == pytest.approx(ratings[1].bradley_terry, abs=0.1)


def test_the_order_of_published_models(shared_data: Path) -> None:
    battles = read_battles(shared_data / "arena" / "alpacaeval_judged_battles.jsonl.gz")
    ratings = leaderboard(battles, n_resamples=20)
    names = [r.model for r in ratings]
    assert len(battles) == 17705 and len(names) == 16
    assert names[:4] == ["gpt4_1106_preview", "gpt4", "claude", "gpt-3.5-turbo-0301"]
    assert names[-2:] == ["alpaca-7b", "text_davinci_001"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no battle in it"),
        ("{", "line 1: no battle with model_a, model_b and winner"),
        ('{"model_a": "x", "model_b": "y"}', "line 1: no battle with .* .KeyError"),
        (
            '\n{"model_a": "x", "model_b": "y", "winner": "z"}',
            "line 2: winner is 'z'; allowed are model_a, model_b, tie, both_bad",
        ),
        ('{"model_a": "x", "model_b": "x", "winner": "tie"}', "line 1: x against itself"),
        ("[1]", "line 1: no battle"),
    ],
)
def test_bad_battles_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "b.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_battles(tmp_path / "b.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_battles(tmp_path / "none.jsonl")


def test_a_compressed_file_that_breaks_off_or_is_damaged_is_told(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"model_a": "x", "model_b": "y", "winner": "tie"}\n' * 50)
    for content in (whole[:-12], whole[:20] + b"?" * 20 + whole[40:], b"no gzip"):
        (tmp_path / "b.jsonl.gz").write_bytes(content)
        with pytest.raises(DataError, match="b.jsonl.gz: cannot be read"):
            read_battles(tmp_path / "b.jsonl.gz")


def test_spellings_of_published_battles(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps({"model_a": "x", "model_b": "y", "winner": "tie (bothbad)"}) + "\n")
    assert read_battles(tmp_path / "b.jsonl.gz") == [Battle("x", "y", "both_bad")]
