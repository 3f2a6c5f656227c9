"""Streamed text breaks between words on a terminal, however it comes, and nowhere else."""

import io

import pytest
from rich.console import Console

from instruct_lit.serving.word_wrap import WordWrapper


def written(parts: list[str], width: int = 12, terminal: bool = True) -> str:
    out = io.StringIO()
    wrapped = WordWrapper(Console(file=out, width=width, force_terminal=terminal, color_system=None))
    for part in parts:
        wrapped.write(part)
    wrapped.end()
    return out.getvalue()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("short", "short\n"),
        ("one two three four five", "one two \nthree four \nfive\n"),
        ("exactly 12 c more", "exactly 12 c\nmore\n"),
        ("a\n\n  indented line", "a\n\n  indented \nline\n"),
        ("a-word-longer-than-a-line and", "a-word-longer-than-a-line\nand\n"),
        ("颜色有红色和蓝色", "颜色有红色和\n蓝色\n"),
    ],
)
def test_lines_end_between_words(text: str, expected: str) -> None:
    assert written([text]) == written(list(text)) == expected


def test_elsewhere_the_text_is_as_it_is() -> None:
    assert written(["one two three ", "four five"], terminal=False) == "one two three four five\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_control_characters_do_not_reach_the_terminal(terminal: bool) -> None:
    text = "red\x1b[2J\x07 and\x9b31m green\n"
    assert written(list(text), width=80, terminal=terminal) == "red\\x1b[2J\\x07 and\\x9b31m green\n\n"


def test_a_word_is_shown_when_it_is_whole() -> None:
    out = io.StringIO()
    wrapped = WordWrapper(Console(file=out, width=12, force_terminal=True, color_system=None))
    wrapped.write("one tw")
    assert out.getvalue() == "one "
    wrapped.write("o 颜")
    assert out.getvalue() == "one two 颜"


def test_styled_text_is_coloured_whole() -> None:
    out = io.StringIO()
    wrapped = WordWrapper(Console(file=out, width=80, force_terminal=True, color_system="standard"))
    for part, style in (("I ad", "dim"), ("d.</think>", "dim"), (" It is", None), (" 3", None)):
        wrapped.write(part, style)
    wrapped.end()
    assert out.getvalue().replace("\x1b[0m\x1b[2m", "") == "\x1b[2mI add.</think>\x1b[0m It is 3\n"
