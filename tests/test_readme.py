"""The README cannot drift: its symbols exist, its commands compose, its files are there."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from instruct_lit.config.compose import CONF
from tests.configs import composed

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh.md").read_text(encoding="utf-8")
PAGES = [README, CHINESE, *(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md")))]
COMMANDS = list(
    dict.fromkeys(
        line.strip() for page in PAGES for line in page.splitlines() if line.startswith("    python -m instruct_lit.")
    )
)
SYMBOLS = re.findall(
    r"`((?:core|train)\.[a-z_.]*\.?[A-Za-z_]+)`",
    README.split("## Life of")[1].split("**The loss")[0],
)


def test_it_is_short_and_names_the_two_commands() -> None:
    assert len(README.splitlines()) <= 200
    assert "make train" in README and "make test" in README


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_every_symbol_of_the_six_stops_exists(symbol: str) -> None:
    module, _, name = symbol.rpartition(".")
    assert hasattr(importlib.import_module(f"instruct_lit.{module}"), name)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes(command: str) -> None:
    _, _, module, *overrides = shlex.split(command.replace("<date>", "d").replace("<time>", "t"))
    name = module.removeprefix("instruct_lit.")
    overrides = [o for o in overrides if o not in ("-m", "--cfg", "job")]
    single = [re.sub(r"^([^\[{]*?)=([^,\[{]*),.*", r"\1=\2", o) for o in overrides]
    composed(name, *single)


def test_what_it_points_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).is_file(), target
    for option in re.findall(r"`(?:experiment|debug|batching)=([a-z_]+)`", README):
        assert list(CONF.glob(f"*/{option}.yaml")), option


def test_the_chinese_readme_has_the_same_stops_and_only_commands_of_the_english_one() -> None:
    assert set(re.findall(r"`(core\.[a-z_.]+\.\w+)`", CHINESE)) <= set(SYMBOLS)
    commands = [line for line in CHINESE.splitlines() if line.startswith("    ") and "#" not in line]
    assert commands and set(commands) <= set(README.splitlines())


def test_there_are_six_stops_and_commands() -> None:
    assert len(SYMBOLS) >= 10 and len(COMMANDS) >= 6
