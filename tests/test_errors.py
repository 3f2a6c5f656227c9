"""The form of an error message, whatever the input was."""

import pickle
from pathlib import Path

import pytest

from instruct_lit.config.compat_hydra import parse_overrides
from instruct_lit.errors import MAX_LENGTH, MAX_LINES, ConfigError, DataError, printable, quoted, similar


def test_control_characters_are_escaped() -> None:
    assert printable("red\x1b[2J\x07 \x9b1m\n\tgrün 你好") == "red\\x1b[2J\\x07 \\x9b1m\n\tgrün 你好"
    assert str(DataError("a.json, record 1: \x1b]0;title\x07")) == "a.json, record 1: \\x1b]0;title\\x07"


def test_a_long_value_is_cut_and_the_place_and_the_remedy_stay() -> None:
    error = ConfigError(f"data.path={'x' * 100_000}: no such file; give a .json file with data.path=…")
    assert str(error).startswith("data.path=xxxx") and len(str(error)) == MAX_LENGTH
    assert str(error).endswith("xxx …; give a .json file with data.path=…")
    assert str(ConfigError("x" * 100_000 + " refused")).endswith("xxx refused")
    assert len(str(ConfigError("y" * MAX_LENGTH))) == MAX_LENGTH and "…" not in str(ConfigError("y" * MAX_LENGTH))


def test_a_list_is_cut_between_its_words() -> None:
    words = [f"word{n}" for n in range(100)]
    cut = str(ConfigError(", ".join(words))).replace("…", "").replace(",", "").split()
    assert len(cut) > 30 and set(cut) <= set(words)


def test_a_missing_path_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "support").mkdir()
    assert similar(tmp_path / "suport") == f" (did you mean {tmp_path / 'support'}?)"
    (tmp_path / "supporter").mkdir()
    assert similar(tmp_path / "support") == "", "it is there, but a file where a folder is needed"
    assert similar(tmp_path / "other") == similar(tmp_path / "nowhere" / "support") == ""
    assert similar(Path("nowhere/support")) == f" in {Path.cwd()}"


def test_many_problems_are_cut_to_a_screen() -> None:
    lines = str(ConfigError("\n".join(f"line {n}" for n in range(1000)))).split("\n")
    assert len(lines) == MAX_LINES + 1 and lines[-1] == "  … and 960 more lines"


def test_an_error_travels_between_processes() -> None:
    assert str(pickle.loads(pickle.dumps(DataError("a: b; c")))) == "a: b; c"


@pytest.mark.parametrize("text", ["a b,c={x}[]()", "o'brien", "a\\", "a\\\\'b", "\\'", "''", " é ", "a'", "$x\ty"])
def test_a_quoted_text_is_the_same_text_in_an_override(text: str) -> None:
    (override,) = parse_overrides([f"key={quoted(text)}"])
    assert override.value() == text
