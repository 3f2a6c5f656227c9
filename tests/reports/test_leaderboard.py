"""Table, win matrix and plot of a leaderboard."""

from pathlib import Path

import numpy as np
import pytest

from instruct_lit.evaluation.ratings import Battle, Rating, leaderboard
from instruct_lit.reports.leaderboard import HEADS, show_leaderboard, table_of, win_matrix

BATTLES = [
    Battle("a", "b", "model_a"),
    Battle("b", "a", "model_a"),
    Battle("a", "b", "tie"),
    Battle("a", "c", "both_bad"),
]


def test_the_win_matrix_by_hand() -> None:
    nan = np.nan
    np.testing.assert_array_equal(
        win_matrix([*BATTLES, Battle("b", "a", "model_b")], ["a", "b", "c"]),
        [[nan, 2.5 / 4, 0.5], [1.5 / 4, nan, nan], [0.5, nan, nan]],
    )


def test_table_and_plot(tmp_path: Path) -> None:
    ratings = leaderboard(BATTLES)
    table = table_of(ratings)
    assert [row[0] for row in table] == ["1 to 3"] * 3, "four battles leave all ranks open"
    assert all(len(row) == len(HEADS) for row in table)
    assert {row[1]: row[-2:] for row in table} == {"a": ["50.0%", 4], "b": ["50.0%", 3], "c": ["50.0%", 1]}
    assert show_leaderboard(BATTLES, str(tmp_path / "board.png")) == ratings
    assert (tmp_path / "board.png").read_bytes().startswith(b"\x89PNG")


def test_the_printed_board_has_every_name_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("sets=[a,b]", "[/x] or [bold]")
    show_leaderboard([Battle(*names, "tie")] * 3)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["rank", "model", "Bradley–Terry"]
    row = lines[0].split()
    assert row[:5] == "1 to 2 sets=[a,b] 1000".split() and row[-3:] == "1000 50.0% 3".split() and names[1] in lines[1]


def test_ranks_are_those_that_the_intervals_allow() -> None:
    bounds = {"a": (1200, 1300), "b": (1050, 1150), "c": (900, 1100), "d": (700, 950), "e": (500, 600)}
    ratings = [Rating(name, (low + high) / 2, low, high, 1000, 9, 0.5) for name, (low, high) in bounds.items()]
    assert [row[0] for row in table_of(ratings)] == ["1", "2 to 3", "2 to 4", "3 to 4", "5"]


def test_a_first_vote_can_be_rated() -> None:
    first, second = leaderboard([Battle("x", "y", "model_b")])
    assert (first.model, first.n_battles, first.win_rate) == ("y", 1, 1.0) and first.elo > second.elo


def test_ranks_of_several_groups_name_their_group(capsys: pytest.CaptureFixture[str]) -> None:
    ratings = show_leaderboard([*BATTLES, Battle("x", "y", "model_a")])
    assert [row[0] for row in table_of(ratings)] == ["1.1 to 1.3"] * 3 + ["2.1 to 2.2"] * 2
    assert "ratings of different groups cannot be compared" in capsys.readouterr().out
