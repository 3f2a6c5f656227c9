"""From a command line to a composed configuration, and from an error to one message.

Importing this module imports nothing heavy. The schemas are in `instruct_lit.config.schema` and beside each command;
objects are built from a configuration in `instruct_lit.config.builders`.
"""

from __future__ import annotations

import difflib
import errno
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from instruct_lit.errors import InstructLitError, TrialPruned
from instruct_lit.sweeps import trial

PACKAGE = Path(__file__).resolve().parents[1]
# In a checkout conf/ lies beside the package, in an installed wheel inside it.
CONF = PACKAGE.parent / "conf" if (PACKAGE.parent / "pyproject.toml").exists() else PACKAGE / "conf"


def run_command(config_name: str, schema: type, verb: Callable[[Any], Any]) -> None:
    """Compose the configuration of one command from the command line and run its verb; the body of an entry point.

    Errors that the user can mend are printed as one message and end the process with status 2. Under `--multirun`
    every run is a process of its own (`instruct_lit.sweeps.trial`).
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    register(config_name, schema)
    # Without this Hydra prints errors itself, cut short and with advice that does not help here.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")

    @functools.wraps(verb)
    def guarded(config: DictConfig) -> Any:
        with _one_message(config_name):  # here too, before Hydra adds a line of its own
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                return trial.run_trial(config_name, HydraConfig.get())
            result = verb(config)
            if is_trial:
                trial.write_result(result)
            return result

    # The processes that a trial starts for other devices find this variable too; the first of them speaks for all.
    is_trial = trial.FOLDER_VARIABLE in os.environ and int(os.environ.get("LOCAL_RANK", 0)) == 0
    with _one_message(config_name):
        if is_trial:
            trial.hold_folder()
            trial.exit_with_the_sweep()
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(guarded)()


def register(config_name: str, schema: type) -> None:
    """Make a command's schema and the resolvers of `conf/` known to Hydra."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name=f"{config_name}_schema", node=schema)
    OmegaConf.register_new_resolver("cache_dir", _cache_dir, replace=True)
    OmegaConf.register_new_resolver("package_dir", lambda: str(PACKAGE), replace=True)
    OmegaConf.register_new_resolver("times", lambda a, b: float(f"{a * b:.10g}"), replace=True)


@contextmanager
def _one_message(config_name: str) -> Iterator[None]:
    try:
        yield
    except InstructLitError as error:
        _exit_with(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        _exit_with(_explain(error, config_name))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _exit_with(f"{error.filename or 'paths.outputs'}: {error.strerror}; what was written before is intact")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR) and error.filename:
            _exit_with(f"{error.filename}: {error.strerror}; choose another folder (paths.outputs=…, paths.cache=…)")
        raise
    except TrialPruned as pruned:
        _exit_with(str(pruned), trial.PRUNED)
    except KeyboardInterrupt:
        sys.exit(trial.INTERRUPTED)


def _exit_with(message: str, status: int = 2) -> None:
    line = "\n" if trial.FOLDER_VARIABLE in os.environ else ""  # in a log, a progress bar may stand before it
    print(line + (f"error: {message}" if status == 2 else message), file=sys.stderr)
    sys.exit(status)


def _cache_dir() -> str:
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "instruct-lit"
    return os.environ.get("INSTRUCT_LIT_CACHE", str(default))


_NOISE = ("object_type=", "reference_type=", "Config search path:", "provider=")


def _explain(error: Exception, config_name: str) -> str:
    """Hydra's or OmegaConf's message with the key's neighbours behind it, so that a typing error mends itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = error.__cause__
    if cause is not None and str(cause) not in str(error):
        lines += [line.strip() for line in str(cause).splitlines() if line.strip()]
    message = "\n  ".join(line for line in lines if not line.startswith(_NOISE))
    plugin = re.search(r"hydra/(?:launcher|sweeper)/(\w+)'", message)
    if plugin:
        message += f"\n  is it installed? pip install 'instruct-lit[{'ray' if plugin.group(1) == 'ray' else 'sweep'}]'"
    match = re.search(r"[Kk]ey '([^']+)'", str(cause or error)) or re.search(r"[Kk]ey '([^']+)'", str(error))
    full_key = re.search(r"full_key: (\S+)", str(cause or error)) or re.search(r"override '?([\w.@/]+)", str(error))
    if match and full_key:
        parent = full_key.group(1).rpartition(".")[0]
        allowed = _keys_of(config_name, parent)
        close = difflib.get_close_matches(match.group(1), allowed, n=1)
        if close:
            message += f"\n  did you mean {'.'.join(filter(None, (parent, close[0])))}?"
        if allowed:
            message += f"\n  allowed{f' in {parent}' if parent else ''}: {', '.join(allowed)}"
    return message


def _keys_of(config_name: str, parent: str) -> list[str]:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(config_name)
            node = OmegaConf.select(config, parent) if parent else config
            return [str(key) for key in node] if isinstance(node, DictConfig) else []
    except (HydraException, OmegaConfBaseException, ValueError):
        return []


def differences(config: DictConfig, config_name: str) -> list[tuple[str, Any, Any]]:
    """Every key whose value is not that of the command's defaults: (key, default, value)."""
    from hydra import compose

    default, given = flat(compose(config_name)), flat(config)
    keys = sorted({*default, *given})
    return [(key, default.get(key), given.get(key)) for key in keys if default.get(key) != given.get(key)]


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of a configuration by its dotted key."""
    container = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if not isinstance(container, dict) or not container:
        return {prefix: container}
    leaves: dict[str, Any] = {}
    for key, value in container.items():
        leaves.update(flat(value, f"{prefix}.{key!s}" if prefix else str(key)))
    return leaves
