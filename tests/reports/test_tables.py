"""Tables in other forms than the terminal's."""

import json

import pytest

from instruct_lit.reports.tables import LineConsole, print_records, show, show_table, table_alone

RECORDS = [{"model": "a|b_c", "mean": 0.123456, "low": None}, {"model": "d", "mean": 1, "low": 0.5}]


def test_forms_of_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(form: str) -> str:
        print_records(RECORDS, form)
        return capsys.readouterr().out

    assert printed("table") == ""
    assert printed("csv") == "model,mean,low\na|b_c,0.123456,\nd,1,0.5\n"
    assert json.loads(printed("json")) == RECORDS
    assert printed("markdown") == ("| model | mean | low |\n|---|---|---|\n| a\\|b_c | 0.1235 |  |\n| d | 1 | 0.5 |\n")
    latex = printed("latex").splitlines()
    assert latex[:4] == [r"\begin{tabular}{lll}", r"\toprule", r"model & mean & low \\", r"\midrule"]
    assert latex[4] == r"a|b\_c & 0.1235 &  \\" and latex[-1] == r"\end{tabular}"


def test_everything_else_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    for form, streams in (("csv", ("", "text\n")), ("table", ("text\n", ""))):
        with table_alone(form):
            print("text")
        assert tuple(capsys.readouterr()) == streams


def test_a_narrow_terminal_breaks_values_and_cuts_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    value = "0.2833   (before fine-tuning 0.0167)"
    show_table(("name", "value"), [("test/exact_match", value), ("best_step", "15")], header=False)
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(line[16:].strip() for line in lines) == "0.2833   (before fine-tuning 0.0167) 15"
    assert not any(line.endswith(" ") for line in lines)
    assert lines[0].startswith("test/exact_match  0.2833") and max(map(len, lines)) <= 40


def test_a_file_gets_whole_lines_without_spaces_at_their_ends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    show_table(("name", "value"), [("loss", "3.9 " * 30), ("a", "b")])
    lines = capsys.readouterr().out.splitlines()
    assert (
        len(lines) == 3
        and lines[0].split() == ["name", "value"]
        and lines[1].endswith("3.9 3.9")
        and lines[2].split() == ["a", "b"]
    )
    assert all(line == line.rstrip() for line in lines)
    long = "a text of many words, " * 20
    show(long)
    LineConsole().print(long, markup=False)
    assert capsys.readouterr().out == f"{long}\n" * 2


def test_a_table_wider_than_the_terminal_keeps_names_and_digits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    show_table(
        ("metric", "mean", "95 % interval"), [("exact_match", "0.000", "0.000 to 0.842"), ("loss, input", "3", "")]
    )
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["metric", "mean", "95", "%", "interval"]
    assert rows[0].split() == ["exact_match", "0.000", "0.000", "to", "0.842"]
    assert "loss, input" in rows[1] and rows[1].split()[2] == "3"
