"""`--help` of a command: what it does, its groups with their choices, and its most used keys."""

import itertools
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import yaml
from omegaconf import OmegaConf

from instruct_lit.config import compose
from instruct_lit.config.schema import COMMANDS
from instruct_lit.config.schema.constructors import CONSTRUCTOR_KEYS
from instruct_lit.config.schema.options import keys_of, sentence_of, shown

WIDTH = 80
MOST_USED: dict[str, str] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def help_of(command: str, overrides: Sequence[str] = ()) -> str:
    """The help of a command, at most 80 columns wide; the values shown are those with the overrides."""
    keys = {key.name: key for key in keys_of(COMMANDS[command])}
    values = _values(command, overrides)
    shown = MOST_USED[command].split()
    lines = [
        f"usage: python -m instruct_lit.{command} [group=choice ...] [key=value ...]",
        "",
        *textwrap.wrap(sentence_of(COMMANDS[command]), WIDTH),
    ]
    if groups := groups_of(command):
        lines += ["", "Groups, as in " + "{}={}:".format(*_example(groups))]
        for name, default in groups.items():
            text = ", ".join(f"{choice}*" if choice == default else choice for choice in compose.choices_of(name))
            lines += textwrap.wrap(f"  {name:<12}{text}", WIDTH, subsequent_indent=" " * 14)
        lines.append("  (* is the default; a group without * is off by default)")
    n_keys = sum(key.group is None for key in keys.values())
    lines += ["", f"Most used keys{f' (of {n_keys})' if n_keys > len(shown) else ''}, with type and value:"]
    for name in shown:
        key = keys.get(name)
        rules = key.rules if key else CONSTRUCTOR_KEYS[name]
        kind = f"{key.type_name}, " if key and key.type_name != "Any" else ""
        lines.append(f"  {name}  ({kind}{values.get(name, 'required')})")
        doc = rules.doc + (f" One of {', '.join(rules.choices)}." if rules.choices else "")
        lines += textwrap.wrap(doc, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    lines += [
        "",
        "Every key with its meaning: docs/reference.md. The whole configuration with",
        "these overrides: --cfg job. Several values, one run each: --multirun key=a,b.",
        "Options of Hydra itself: --hydra-help.",
    ]
    return "\n".join(lines)


def groups_of(command: str) -> dict[str, str | None]:
    """The groups of a command that have files in `conf/`, with their default choice."""
    defaults = OmegaConf.to_container(OmegaConf.load(compose.CONF / f"{command}.yaml"))["defaults"]  # type: ignore[index, call-overload]
    entries = (item for entry in defaults if isinstance(entry, dict) for item in entry.items())
    named = {str(name).removeprefix("optional "): choice for name, choice in entries}
    others = ("hydra", "paths", "override ")
    return {name: choice for name, choice in named.items() if not name.startswith(others) and compose.choices_of(name)}


def summary_of(file: Path) -> str:
    """The comment at the top of a file of `conf/`, without its technical lines."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines())
    return " ".join(line.lstrip("# ") for line in lines if not re.match(r"# (@package|satellite:)", line))


def _example(groups: dict[str, str | None]) -> tuple[str, str]:
    name = next(iter(groups))
    return name, next((choice for choice in compose.choices_of(name) if choice != groups[name]), str(groups[name]))


def _values(command: str, overrides: Sequence[str]) -> dict[str, str]:
    """The value of each most used key as it is typed; keys without one are left out."""
    try:
        config = compose.composed(command, overrides)
    except Exception:  # a wrong override is no reason to refuse help
        config = compose.composed(command)
    found = {}
    for name in MOST_USED[command].split():
        try:
            value = OmegaConf.select(config, name, throw_on_missing=True)
        except Exception:  # required, or of an interpolation that needs a run
            continue
        text = shown(value)
        found[name] = text if len(text) < 40 else f"{text[:36]} …"
    return found
