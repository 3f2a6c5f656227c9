"""Ratings from battles: known strengths, the library's figures on real battles, undefeated and unconnected models."""

import gzip
import json
import math
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from instruct_lit.errors import DataError
from instruct_lit.evaluation.ratings import Battle, leaderboard, read_battles


def battles_of(strength: Mapping[str, float], n_per_pair: int, draw: random.Random) -> list[Battle]:
    names = list(strength)
    return [
        Battle(a, b, "model_a" if draw.random() < strength[a] / (strength[a] + strength[b]) else "model_b")
        for i, a in enumerate(names)
        for b in names[i + 1 :]
        for _ in range(n_per_pair)
    ]


def test_known_strengths_come_back() -> None:
    battles = battles_of({"weak": 1.0, "middle": 3.0, "strong": 10.0}, 1333, random.Random(1))
    ratings = {r.model: r for r in leaderboard(battles)}
    assert list(ratings) == ["strong", "middle", "weak"]
    assert ratings["strong"].bradley_terry - ratings["weak"].bradley_terry == pytest.approx(400, abs=40)  # ten to one
    assert sum(r.bradley_terry for r in ratings.values()) == pytest.approx(3000)
    for rating in ratings.values():
        assert rating.low < rating.bradley_terry < rating.high and rating.high - rating.low < 60
    assert sum(r.n_battles for r in ratings.values()) == 2 * 3999


def test_the_interval_covers_the_true_rating_as_often_as_it_states() -> None:
    strength, hits = {"a": 1.0, "b": 2.0, "c": 6.0}, 0
    true = {name: 1000 + 400 * (math.log10(s) - math.log10(12) / 3) for name, s in strength.items()}
    for trial in range(150):
        ratings = leaderboard(battles_of(strength, 20, random.Random(trial)))
        hits += sum(rating.low <= true[rating.model] <= rating.high for rating in ratings)
    assert hits / 450 >= 0.93


def test_an_undefeated_model_is_rated_with_a_wide_interval() -> None:
    """The likelihood alone has no maximum here."""
    first, second = leaderboard([Battle("x", "y", "model_a")] * 20)
    assert (first.model, first.win_rate) == ("x", 1) and first.bradley_terry - second.bradley_terry > 400
    assert first.high - first.low > 300 and first.low > 1000 > second.high
    even = leaderboard([*[Battle("x", "y", "model_a")] * 20, *[Battle(a, b, "model_a") for a, b in ("yz", "zy")] * 30])
    assert even[0].model == "x"
    assert even[1].bradley_terry == pytest.approx(even[2].bradley_terry, abs=30)  # y and z are even
    assert even[0].high - even[0].low > even[2].high - even[2].low > 50


def test_models_that_no_battles_connect_are_rated_in_groups() -> None:
    battles = [Battle("c", "d", "model_a"), *[Battle("a", "b", w) for w in ("model_a", "tie", "model_b", "model_a")]]
    ratings = leaderboard(battles)
    assert [(r.model, r.group) for r in ratings] == [("a", 1), ("b", 1), ("c", 2), ("d", 2)]
    assert sum(r.bradley_terry for r in ratings[:2]) == pytest.approx(2000)
    alone = leaderboard(battles[1:])
    assert [r.bradley_terry for r in ratings[:2]] == pytest.approx([r.bradley_terry for r in alone])


def test_figures_of_the_library_on_published_battles(shared_data: Path) -> None:
    evalica = pytest.importorskip("evalica")
    battles = read_battles(shared_data / "arena" / "alpacaeval_judged_battles.jsonl.gz")
    ratings = leaderboard(battles)
    names = [r.model for r in ratings]
    assert len(battles) == 17705 and len(names) == 16 and {r.group for r in ratings} == {1}
    assert names[:4] == ["gpt4_1106_preview", "gpt4", "claude", "gpt-3.5-turbo-0301"]
    assert names[-2:] == ["alpaca-7b", "text_davinci_001"]
    outcomes = {"model_a": evalica.Winner.X, "model_b": evalica.Winner.Y}
    columns = [
        [b.model_a for b in battles],
        [b.model_b for b in battles],
        [outcomes.get(b.winner, evalica.Winner.Draw) for b in battles],
    ]
    theirs = np.log10(evalica.bradley_terry(*columns).scores)
    elo = evalica.elo(*columns).scores
    for rating in ratings:  # the prior moves no rating by more than a tenth of its interval
        assert rating.bradley_terry == pytest.approx(1000 + 400 * (theirs[rating.model] - theirs.mean()), abs=2.5)
        assert rating.elo == pytest.approx(elo[rating.model], abs=1e-6) and 30 < rating.high - rating.low < 180


def test_ties_are_half_a_win_for_each() -> None:
    battles = [
        Battle("x", "y", "tie"),
        Battle("y", "x", "both_bad"),
        Battle("x", "y", "model_a"),
        Battle("x", "y", "model_b"),
    ]
    ratings = leaderboard(battles)
    assert {r.win_rate for r in ratings} == {0.5}
    assert ratings[0].bradley_terry == pytest.approx(ratings[1].bradley_terry, abs=0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it has no battles"),
        ("{", "line 1: not a battle with model_a, model_b and winner"),
        ('{"model_a": "x", "model_b": "y"}', "line 1: not a battle with .* .no 'winner'"),
        (
            '\n{"model_a": "x", "model_b": "y", "winner": "z"}',
            "line 2: winner is 'z'; allowed are model_a, model_b, tie, both_bad",
        ),
        ('{"model_a": "x", "model_b": "x", "winner": "tie"}', "line 1: x against itself"),
        ("[1]", "line 1: not a battle"),
        ("[" * 100_000, "line 1: not a battle with .* .RecursionError"),
    ],
)
def test_bad_battles_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "b.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_battles(tmp_path / "b.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_battles(tmp_path / "none.jsonl")


def test_a_truncated_or_damaged_gzip_file_is_reported(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"model_a": "x", "model_b": "y", "winner": "tie"}\n' * 50)
    for content in (whole[:-12], whole[:20] + b"?" * 20 + whole[40:], b"no gzip"):
        (tmp_path / "b.jsonl.gz").write_bytes(content)
        with pytest.raises(DataError, match="b.jsonl.gz: cannot be read"):
            read_battles(tmp_path / "b.jsonl.gz")


def test_spellings_of_published_battles(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps({"model_a": "x", "model_b": "y", "winner": "tie (bothbad)"}) + "\n")
    assert read_battles(tmp_path / "b.jsonl.gz") == [Battle("x", "y", "both_bad")]
