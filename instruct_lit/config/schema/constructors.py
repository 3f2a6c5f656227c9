"""What is known of constructors named by `_target_`, beside their signatures; the tables are in `constructors.yaml`."""

from pathlib import Path
from typing import Any

import yaml

from instruct_lit.config.schema.options import Rules

_TABLES: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def _rules(given: str | dict[str, Any]) -> Rules:
    given = {"doc": given} if isinstance(given, str) else {"doc": "", **given}
    return Rules(**given | {"choices": tuple(given.get("choices", ()))})


CONSTRUCTOR_KEYS = {key: _rules(given) for key, given in _TABLES["keys"].items()}
CALLBACK_RULES = {
    name: {key: _rules(given) for key, given in arguments.items()} for name, arguments in _TABLES["callbacks"].items()
}
REFUSED_ARGUMENTS: dict[str, str] = _TABLES["refused_arguments"]
REFUSED_CALLBACKS: dict[str, str] = _TABLES["refused_callbacks"]
