"""Tables in the terminal."""

import pytest

from instruct_lit.reports.tables import show, table


def test_text_is_left_numbers_are_right_and_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    made = table("name", "value", "note", text=("note",))
    made.add_row("a", "1.5", "[bold]x")
    made.add_row("long name", "10.25", "y")
    show(made)
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "name       value  note",
        "a            1.5  [bold]x",
        "long name  10.25  y",
    ]


def test_a_long_line_is_not_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    show("word " * 30)
    assert capsys.readouterr().out == "word " * 30 + "\n"
