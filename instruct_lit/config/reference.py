"""docs/reference.md, made from the schema: `python -m instruct_lit.config.reference > docs/reference.md`."""

import sys
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf

from instruct_lit.config import compose
from instruct_lit.config.help import groups_of, summary_of
from instruct_lit.config.schema import COMMANDS
from instruct_lit.config.schema.constructors import CONSTRUCTOR_KEYS
from instruct_lit.config.schema.options import BOUNDS, Key, Rules, keys_of, sentence_of, shown

HEAD = """# Reference: every key of the configuration

Made from the schema by `python -m instruct_lit.config.reference > docs/reference.md`; do not edit it.

A key is set on the command line, `python -m instruct_lit.train data.batch_size=16`, or in a file of `conf/`. A group
is a folder of `conf/`; `model=gpt2` chooses `conf/model/gpt2.yaml`, which sets the keys of the group. The default is
that of the command; another choice of a group may set another one. `null` is "none". Where a default is `${…}`, it is
the value of that key. Keys that hold a constructor (`_target_`) accept any argument of it, with a leading `+` where
`conf/` does not name it: `+trainer.limit_predict_batches=1`.
"""


def reference() -> str:
    """The page as Markdown."""
    lines = [HEAD, "## Commands", "", "| command | what it does | its groups |", "|---|---|---|"]
    for command, schema in COMMANDS.items():
        names = ", ".join(f"[`{name}`](#{name})" for name in groups_of(command))
        lines.append(f"| [`{command}`](#keys-of-{command}) | {_cell(sentence_of(schema))} | {names} |")
    lines.append("")
    constructed = [Key(name, "Any", None, rules) for name, rules in CONSTRUCTOR_KEYS.items()]
    described: set[str] = set()
    for command, schema in COMMANDS.items():
        keys = list(keys_of(schema))
        values = OmegaConf.to_container(compose.composed(command))
        others = {key.name.partition(".")[0] for key in constructed}  # which have sections of their own
        own = [key for key in keys if "." not in key.name and key.group is None and key.name not in others]
        lines += _section(f"Keys of `{command}`", own, values, schema)
        groups = {key.name: key.group for key in keys if key.group}
        for name in [*groups, *groups_of(command)]:
            if name not in described:
                described.add(name)
                inner = [k for k in (*keys, *constructed) if k.name.startswith(f"{name}.") and not k.group]
                lines += _section(f"`{name}`", inner, values, groups.get(name), name)
    return "\n".join(lines).rstrip() + "\n"


def _section(title: str, keys: list[Key], values: Any, schema: type | None, group: str | None = None) -> list[str]:
    lines = [f"## {title}", ""]
    if schema is not None:
        lines += [sentence_of(schema), ""]
    choices = compose.choices_of(group) if group else []
    if choices:
        lines += [f"| choice | `conf/{group}/` |", "|---|---|"]
        lines += [
            f"| `{group}={name}` | {_cell(summary_of(compose.CONF / str(group) / f'{name}.yaml'))} |"
            for name in choices
        ]
        lines.append("")
    if keys:
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for key in keys:
            kind, doc = key.type_name.replace("Any", "any"), " ".join((key.rules.doc, *_bounds(key.rules)))
            lines.append(f"| `{key.name}` | {kind} | {_default(key, values)} | {_cell(doc)} |")
        lines.append("")
    return lines


def _bounds(rules: Rules) -> Iterator[str]:
    if rules.choices:
        yield f"One of {', '.join(rules.choices)}."
    limits = {name.replace("_", " "): getattr(rules, name) for name in BOUNDS}
    given = [f"{name} {limit}" for name, limit in limits.items() if limit is not None]
    if given:
        yield f"{', '.join(given).capitalize()}."


def _default(key: Key, values: Any) -> str:
    """The default of the composed configuration; of a group that is off by default, that of the schema."""
    value: Any = values
    for part in key.name.split("."):
        value = value.get(part, key.default) if isinstance(value, dict) else key.default
    if value == "???":
        return "required"
    if isinstance(value, dict) and "_target_" in value:
        return f"`{value['_target_']}`"
    text = shown(value)
    return _cell(f"`{text}`") if len(text) < 60 else "…"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


if __name__ == "__main__":
    sys.stdout.write(reference())
