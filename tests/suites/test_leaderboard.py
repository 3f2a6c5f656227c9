"""Table, win matrix and plot of a leaderboard."""

from pathlib import Path

import numpy as np
import pytest

from instruct_lit.suites.leaderboard import HEADS, print_leaderboard, save_plot, table_of, win_matrix
from instruct_lit.suites.ratings import Battle, Rating, leaderboard

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
    pytest.importorskip("evalica")
    ratings = leaderboard(BATTLES)
    table = table_of(ratings)
    assert [row[0] for row in table] == [1, 2, 3] and all(len(row) == len(HEADS) for row in table)
    assert {row[1]: row[-2:] for row in table} == {"a": ["50.0%", 4], "b": ["50.0%", 3], "c": ["50.0%", 1]}
    save_plot(tmp_path / "board.png", ratings, BATTLES)
    assert (tmp_path / "board.png").read_bytes().startswith(b"\x89PNG")


def test_the_printed_board_has_every_name_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("sets=[a,b]", "[/x] or [bold]")
    print_leaderboard([Rating(name, 1000.4, 990, 1010, 999, 3, 0.5) for name in names])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["rank", "model", "Bradley–Terry"]
    assert (
        lines[0].split() == ["1", names[0], "1000", "990", "to", "1010", "999", "50.0%", "3"] and names[1] in lines[1]
    )


def test_a_first_vote_can_be_rated() -> None:
    pytest.importorskip("evalica")
    first, second = leaderboard([Battle("x", "y", "model_b")])
    assert (first.model, first.n_battles, first.win_rate) == ("y", 1, 1.0) and first.elo > second.elo
