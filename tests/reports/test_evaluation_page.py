"""What an evaluation prints."""

import pytest

from instruct_lit.reports.evaluation_page import print_leaks


def test_leaks_are_printed_without_what_steers_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    item = {"kind": "exact", "similarity": 1.0, "text": "the cat \x1b[2J sat"}
    print_leaks({"n": 7, "n_rows": 9, "near": True, "items": [item] * 7})
    shown = capsys.readouterr().out
    assert "7 of 9 examples were in the training data (exact 7)" in shown
    assert "exact (1.00): the cat \\x1b[2J sat" in shown and "\x1b" not in shown
    assert "more, in evaluation.json" in shown
