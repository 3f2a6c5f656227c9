"""Progress without a terminal, and results apart from everything else."""

import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from instruct_lit.config import progress
from instruct_lit.config.progress import ProgressLines, output_streams
from instruct_lit.reports import tables
from tests.commands import Command


def drawn(n: int, leave: bool = True) -> str:
    """What becomes of a bar of `n` steps, with a line of other text in its middle."""
    stream = ProgressLines(found := io.StringIO())
    with tqdm(total=n, desc="answers", file=stream, mininterval=0, leave=leave) as bar:
        for step in range(n):
            bar.update()
            if step == n // 2:
                print("warning: something", file=stream)
    stream.end()
    return found.getvalue()


def test_a_bar_is_one_line_when_it_is_complete_and_other_text_is_unchanged() -> None:
    warning, line = drawn(40).splitlines()
    assert warning == "warning: something" and line.startswith("answers: 100% 40/40 [")
    assert drawn(40, leave=False) == "warning: something\n"


def test_a_bar_that_ends_early_has_a_line_before_the_next_one_and_at_the_end() -> None:
    stream = ProgressLines(found := io.StringIO())
    tqdm(desc="requests", unit="request", file=stream, mininterval=0).close()  # its length becomes known later
    for title, total in (("Epoch 0", 10), ("Epoch 1", None)):
        with tqdm(
            total=total,
            desc=title,
            file=stream,
            mininterval=0,
            bar_format="{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}",
        ) as bar:
            bar.update(3)
            print("warning: something", file=stream)
    stream.end()
    assert found.getvalue().splitlines() == [
        "warning: something",
        "Epoch 0 30% 3/10",
        "warning: something",
        "Epoch 1 3/?",
    ]


def test_a_long_bar_is_a_line_per_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL_S", 0.0)
    text = drawn(40)
    lines = text.splitlines()
    assert "\r" not in text and "|" not in text and len(lines) > 40 and len(set(lines)) == len(lines)
    assert re.match(r"answers: \d+% \d/40 \[", text)


@pytest.mark.parametrize(
    ("given", "term", "is_terminal", "bars"),
    [
        ("auto", "xterm", True, True), ("auto", "dumb", True, False), ("auto", "xterm", False, False), ("bar", "xterm", False, True),
        ("lines", "xterm", True, False), ("none", "xterm", True, False),
    ],
)  # fmt: skip
def test_bars_are_for_terminals(
    given: str, term: str, is_terminal: bool, bars: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors, out = io.StringIO(), io.StringIO()
    errors.isatty = out.isatty = lambda: is_terminal  # type: ignore[method-assign]
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr("sys.stderr", errors)
    monkeypatch.setattr("sys.stdout", out)
    with output_streams(given):
        with tqdm(total=2, desc="loss", mininterval=0) as bar:
            bar.update(2)
        print("data: 60 records")
        tables.show("results")
    assert (sys.stdout, sys.stderr, tables.results) == (out, errors, None)
    assert ("\r" in errors.getvalue()) == bars and ("loss: 100%" in errors.getvalue()) == (given != "none")
    apart = not (bars and is_terminal)
    assert out.getvalue() == ("results\n" if apart else "data: 60 records\nresults\n")
    assert ("data: 60 records" in errors.getvalue()) == apart


@pytest.mark.slow
def test_a_run_into_files_has_its_results_on_stdout_and_lines_on_stderr(
    command: Command, small: tuple[str, ...], tmp_path: Path
) -> None:
    done: SimpleNamespace = command("train", *small, "trainer.max_epochs=2", "hydra.run.dir=run", cwd=tmp_path)
    assert "\r" not in done.stdout + done.stderr and "\x1b" not in done.stdout + done.stderr
    assert done.stdout.split()[:2] == [str(tmp_path / "run"), "val/loss"] and "%" not in done.stdout
    lines = done.stderr.splitlines()
    assert lines[0].startswith("batching: packed (exact for this model; examples have up to ")
    assert lines[1] == "data demo: 40 train, 10 val, 10 test" and len(lines) < 10
    assert [line.split()[:4] for line in lines if line.startswith("Epoch")] == [
        ["Epoch", "0:", "100%", "5/5"], ["Epoch", "1:", "100%", "5/5"]
    ]  # fmt: skip
    assert all("val=" in line for line in lines if line.startswith("Epoch"))
    assert sum(line.startswith("answers to the test set: 100% 10/10") for line in lines) == 1
