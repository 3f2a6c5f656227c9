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


def commands_of(page: str) -> list[str]:
    """The lines to be typed, without their comments."""
    lines = [re.split(r"(?<=\S) {4,}#", line)[0].strip() for line in page.splitlines() if line.startswith("    ")]
    return [line for line in lines if line and not line.startswith("#")]


COMMANDS = list(
    dict.fromkeys(line for page in PAGES for line in commands_of(page) if line.startswith("python -m instruct_lit."))
)
SYMBOLS = re.findall(
    r"`((?:core|train)\.[a-z_.]*\.?[A-Za-z_]+)`",
    README.split("## Life of")[1].split("**The loss")[0],
)


def test_it_is_short_and_names_the_two_commands() -> None:
    assert len(README.splitlines()) <= 250
    assert "make train" in README and "make test" in README


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_every_symbol_of_the_six_stops_exists(symbol: str) -> None:
    module, _, name = symbol.rpartition(".")
    assert hasattr(importlib.import_module(f"instruct_lit.{module}"), name)


def by_choices(commands: list[str]) -> dict[tuple[str, ...], list[str]]:
    """The overrides of values by the command and the choices of its groups: those with the same are composed once."""
    values: dict[tuple[str, ...], list[str]] = {}
    for command in commands:
        _, _, module, *given = shlex.split(command.replace("<date>", "d").replace("<time>", "t"))
        given = [o for o in given if o not in ("-m", "--cfg", "job") and not o.startswith(("--cfg=", "--package="))]
        single = [re.sub(r"^([^\[{]*?)=([^,\[{]*),.*", r"\1=\2", o) for o in given]
        choices = [o for o in single if (CONF / o.partition("=")[0].lstrip("+")).is_dir() or o[0] == "~" or "={" in o]
        key = (module.removeprefix("instruct_lit."), *choices)
        values.setdefault(key, []).extend(o for o in single if o not in choices)
    return values


@pytest.mark.parametrize(("command", "values"), by_choices(COMMANDS).items(), ids=lambda given: " ".join(given)[:80])
def test_every_command_composes(command: tuple[str, ...], values: list[str]) -> None:
    composed(*command, *dict.fromkeys(values))


def test_what_it_points_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", README):
        assert (ROOT / target).is_file(), target
    for option in re.findall(r"`(?:experiment|debug|batching)=([a-z_]+)`", README):
        assert list(CONF.glob(f"*/{option}.yaml")), option


def test_the_chinese_readme_has_the_same_commands_symbols_and_tables() -> None:
    assert commands_of(CHINESE) == commands_of(README)
    assert re.findall(r"`(core\.[a-z_.]+\.\w+)`", CHINESE.split("| 6 ")[0]) == re.findall(
        r"`(core\.[a-z_.]+\.\w+)`", README.split("| 6 ")[0]
    )
    for mark in ("\n## ", "\n|", "](#", "](docs/"):
        assert CHINESE.count(mark) == README.count(mark), mark
    for part in (r"`[^`\n]+`", r"\d+(?:[.,]\d+)*"):
        assert sorted(re.findall(part, CHINESE)) == sorted(re.findall(part, README)), part


def test_the_table_of_features_names_every_choice_of_its_groups() -> None:
    internal = {"base", "default", "none", "nano_text"}
    groups = "model data template adapter optimizer scheduler generation experiment debug".split()
    for group in groups:
        row = next(line for line in README.splitlines() if re.match(rf"\| .*`{group}`.* \|", line))
        choices = {file.stem for file in (CONF / group).glob("*.yaml")} - internal
        assert sorted(choice for choice in choices if f"`{choice}`" not in row) == [], group


def test_there_are_six_stops_and_commands() -> None:
    assert len(SYMBOLS) >= 10 and len(COMMANDS) >= 6


def test_the_chinese_readme_has_chinese_punctuation() -> None:
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)|^    .*$|\d,\d{3}", "", CHINESE, flags=re.MULTILINE)
    assert re.findall(r"[\u4e00-\u9fff][,;:()]|[,;:()][\u4e00-\u9fff]", prose) == []


def test_the_dockerfile_runs_what_the_readme_types() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    given = dict(re.findall(r'^ARG (\w+)="?([^"\n]*)"?$', "\n".join(lines), re.MULTILINE))
    run = [line.removeprefix("RUN ") for line in lines if line.startswith("RUN ")]
    run = [re.sub(r"\$(\w+)", lambda match: given[match[1]], line) for line in run]
    own = ("command -v python3.11 ||", 'test -z "" ||')  # where the base image lacks Python, and a GPU's torch
    install = commands_of(README.split("## Install")[1].split("## First run")[0])
    # PATH in the image is what activation sets.
    typed = [line.partition(" && source ")[0] for line in install]
    assert [line for line in run if not line.startswith(own)] == typed
    assert len(lines) - len(run) > 8 and ".venv*" in (ROOT / ".dockerignore").read_text().split()


def test_the_sizes_that_it_names_are_those_of_the_package() -> None:
    n_lines = [
        sum(len(file.read_text(encoding="utf-8").splitlines()) for file in (ROOT / folder).rglob("*.py"))
        for folder in ("instruct_lit/core", "instruct_lit")
    ]
    named = re.findall(r"`core/` has ([\d,]+) lines in \d+ files, the whole package ([\d,]+)", README)[0]
    for size, n in zip(named, n_lines, strict=True):
        assert abs(int(size.replace(",", "")) / n - 1) < 0.08, f"README: {size} lines, there are {n}"
