"""Libraries of the extras in `pyproject.toml`: the one way to import them and to check that they are installed."""

import importlib
import importlib.util
import sys
from typing import Any

from instruct_lit.errors import ConfigError

PACKAGES = {"sklearn": "scikit-learn"}  # where pip's name is not the module's with hyphens


def load(module: str, what: str, extra: str) -> Any:
    """Import a module of an extra.

    Raises: ConfigError, which names what needs it and the extra to install, where it is missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(message(module, what, extra)) from error


def need(module: str, what: str, extra: str) -> None:
    """Raise the ConfigError of `load` where a module is missing, without importing it."""
    if reason := missing(module, what, extra):
        raise ConfigError(reason)


def missing(module: str, what: str, extra: str) -> str | None:
    """The message of `load` where a module is missing; None where it is installed."""
    return None if installed(module) else message(module, what, extra)


def installed(module: str) -> bool:
    """Whether a top-level module can be imported."""
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None


def message(module: str, what: str, extra: str) -> str:
    """The message of `load`: `what: needs package; pip install -e '.[extra]'`."""
    name = module.partition(".")[0]
    return f"{what}: needs {PACKAGES.get(name, name.replace('_', '-'))}; {pip_install(extra)}"


def pip_install(extra: str) -> str:
    """The command that installs an extra, in a checkout: the package is on no index."""
    return f"pip install -e '.[{extra}]'"
