"""Libraries of the extras, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from instruct_lit.errors import ConfigError


def load(module: str, what: str, extra: str) -> Any:
    """Import a module; ConfigError says that `what` needs it and which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0].replace("_", "-").replace("sklearn", "scikit-learn")
        raise ConfigError(f"{what}: needs {package}; pip install 'instruct-lit[{extra}]'") from error
