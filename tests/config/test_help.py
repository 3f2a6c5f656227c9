"""`--help` comes from the schema."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from instruct_lit.config.compose import CONF, choices_of
from instruct_lit.config.help import MOST_USED, groups_of, help_of, summary_of
from instruct_lit.config.schema import COMMANDS
from instruct_lit.config.schema.constructors import CONSTRUCTOR_KEYS
from instruct_lit.config.schema.options import sentence_of
from tests.configs import composed


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_groups_and_keys_of_this_command(command: str) -> None:
    text = help_of(command)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert all(re.search(rf"^  {re.escape(name)}  \(", text, re.M) for name in MOST_USED[command].split())
    assert all(re.search(rf"^  {name} ", text, re.M) for name in groups_of(command))
    assert ("launcher" in text) == (command == "train")


def test_help_has_its_sentences_without_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [sentence_of(schema) for schema in COMMANDS.values()]
    assert all(sentence.endswith(".") for sentence in wanted)
    monkeypatch.setattr("sys.flags", SimpleNamespace(optimize=2))  # python -OO
    assert [sentence_of(schema) for schema in COMMANDS.values()] == wanted


def test_help_shows_the_values_of_the_overrides() -> None:
    assert "  data.batch_size  (int, 7)\n" in help_of("train", ["data.batch_size=7"])
    assert "  data.batch_size  (int, 32)\n" in help_of("train", ["no_such_key=7"])
    assert "  folder  (str or null, null)\n" in help_of("report")


def test_a_constructor_key_that_is_documented_exists() -> None:
    config = composed("train")
    for name in CONSTRUCTOR_KEYS:
        parent, _, key = name.rpartition(".")
        node = config
        for part in parent.split("."):
            node = node[part]
        assert key in node, name


def test_the_help_of_a_command_needs_no_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "instruct_lit.export", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert done.returncode == 0 and done.stdout.startswith("usage: python -m instruct_lit.export") and not done.stderr
    assert list(tmp_path.iterdir()) == []


def test_groups_are_those_of_the_defaults_list() -> None:
    assert groups_of("serve") == {"template": None, "generation": "greedy"}
    assert "base" not in choices_of("data") and "demo" in choices_of("data")
    assert summary_of(CONF / "sweep" / "seeds.yaml").startswith("python -m instruct_lit.train sweep=seeds")
