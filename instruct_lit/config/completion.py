"""Tab completion of commands, groups, keys and values in bash, zsh and fish, for `instruct-lit` and `python -m`."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from instruct_lit.config import compose
from instruct_lit.config.help import groups_of
from instruct_lit.config.schema import COMMANDS
from instruct_lit.config.schema.options import keys_of
from instruct_lit.errors import ConfigError

FLAGS = ("--help", "--cfg", "--multirun", "--hydra-help")
SHELLS = {shell: Path(__file__).with_suffix(f".{shell}") for shell in ("bash", "zsh", "fish")}


def completion(arguments: Sequence[str]) -> str:
    """The functions of a shell, or with `words <line>` the completions of a command line's last word, one a line.

    Raises: ConfigError for anything else.
    """
    if len(arguments) == 1 and arguments[0] in SHELLS:
        return SHELLS[arguments[0]].read_text(encoding="utf-8").strip()
    if len(arguments) == 2 and arguments[0] == "words":
        return "\n".join(words(arguments[1]))
    given = " ".join(["instruct-lit completion", *arguments])
    raise ConfigError(f"{given}: no such shell; allowed are {', '.join(SHELLS)}")


def words(line: str) -> list[str]:
    """What the last word of a command line, up to the cursor, may become."""
    *before, word = re.split(r"\s+", line.lstrip())
    module = re.search(r"-m\s+instruct_lit\.?(\w*)\s*(.*)$", line)
    if module is not None:
        if not re.search(r"-m\s+instruct_lit\S*\s", line):
            return [f"instruct_lit.{name}" for name in COMMANDS if f"instruct_lit.{name}".startswith(word)]
        command, given = module.group(1), before[before.index("-m") + 2 :]
    elif len(before) <= 1:
        return [name for name in (*COMMANDS, "--help", "--version") if name.startswith(word)]
    else:
        command, given = before[1], before[2:]
    if command not in COMMANDS:
        return []
    if word.startswith("-"):
        return [flag for flag in FLAGS if flag.startswith(word)]
    prefix = re.match(r"[+~]*", word)
    signs = prefix.group() if prefix else ""
    return [f"{signs}{found}" for found in _of_configuration(command, given, word.removeprefix(signs))]


def _of_configuration(command: str, given: Sequence[str], word: str) -> list[str]:
    key, equals, value = word.partition("=")
    if equals:
        return [f"{key}={choice}" for choice in _values(command, key) if choice.startswith(value)]
    parent = key.rpartition(".")[0]
    names = {name for name in _children(command, given, parent) if name.startswith(key)}
    if parent == "":
        names |= {f"{group}=" for group in groups_of(command) if group.startswith(key)}
    return sorted(names)


def _children(command: str, given: Sequence[str], parent: str) -> Iterator[str]:
    """The keys of a node of the composed configuration: `key=` for a value, `key.` for a node."""
    try:
        config = compose.composed(command, [text for text in given if "=" in text])
    except Exception:  # a line that is still being typed
        config = compose.composed(command)
    for name, value in compose.nodes_of(OmegaConf.to_container(config)):
        if name and name.rpartition(".")[0] == parent:
            yield f"{name}." if isinstance(value, dict) and value else f"{name}="


def _values(command: str, key: str) -> list[str]:
    """The choices of a group or of a key."""
    if key in groups_of(command):
        return compose.choices_of(key)
    for known in keys_of(COMMANDS[command]):
        if known.name == key:
            return list(known.rules.choices) or (["true", "false"] if known.type_name.startswith("bool") else [])
    return []
