"""From a command line to a composed configuration, and the body of every command.

Importing this module imports nothing heavy. The schemas are in `instruct_lit.config.schema`, errors become messages in
`instruct_lit.config.messages`, and objects are built from a configuration in `instruct_lit.config.*_builders`.
"""

import functools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from instruct_lit.config.compat_hydra import beside_a_command
from instruct_lit.config.messages import one_message, refuse_options, warn_of_repeated_keys
from instruct_lit.config.progress import output_streams, survive_readers
from instruct_lit.config.run_ownership import distinct_folder, own_folder, refuse_folder_in_use
from instruct_lit.config.schema import COMMANDS
from instruct_lit.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]
# In a checkout conf/ lies beside the package, in an installed wheel inside it.
CONF = PACKAGE.parent / "conf" if (PACKAGE.parent / "pyproject.toml").exists() else PACKAGE / "conf"
TRIAL_VARIABLE = "INSTRUCT_LIT_TRIAL"  # set by `sweeps.trial` for a process that is a trial


def run_command(command: str, verb: Callable[[Any], Any]) -> None:
    """Compose and check the configuration of a command, and call `verb` with it; the body of a command.

    Every exception is printed as one message (`messages.one_message`). Under `--multirun` every run is a process of
    its own (`instruct_lit.sweeps.trial`).
    """
    survive_readers()
    if {"--help", "-h"} & set(sys.argv[1:]):
        from instruct_lit.config.help import help_of

        print(help_of(command, [argument for argument in sys.argv[1:] if not argument.startswith("-")]))
        return

    from instruct_lit.config.check_commands import check_command, forget_secrets

    register(command)
    # Without this Hydra prints errors itself, shortened and with advice that does not apply here.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # Child processes of a trial, one for each further device, inherit the variable; only the first one reports.
    is_trial = TRIAL_VARIABLE in os.environ and int(os.environ.get("LOCAL_RANK", 0)) == 0

    @functools.wraps(verb)
    def guarded(config: DictConfig) -> Any:
        with one_message(command):  # here too, before Hydra adds a line of its own
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                from instruct_lit.sweeps import trial

                hydra_config = HydraConfig.get()
                files = configuration_files(hydra_config, command)
                return trial.run_trial(command, hydra_config, config.get("optimized_metric"), files)
            with output_streams(config.progress) if "progress" in config else nullcontext():
                forget_secrets(output_dir(), config)
                check_command(command, config)
                if command in ("train", "evaluate", "benchmark", "export", "reproduce"):  # that write into it
                    own_folder(output_dir())
                result = verb(config)
            if is_trial:
                from instruct_lit.sweeps import trial

                trial.write_result(result)
            return result

    with one_message(command):
        sys.argv = [expanded(re.sub("^endpoint=(?=http)", "endpoint.url=", argument)) for argument in sys.argv]
        # argparse wants overrides side by side, after options
        is_override = re.compile(r"[+~]*[^\W\d][\w./@:-]*=|~\w").match
        sys.argv[1:] = sorted(sys.argv[1:], key=lambda given: is_override(given) is not None)
        refuse_options(sys.argv[1:], command)
        refuse_folder_in_use(sys.argv[1:], command)
        if is_trial:
            from instruct_lit.sweeps import trial

            trial.follow_the_sweep()
        elif int(os.environ.get("LOCAL_RANK", 0)) == 0:
            warn_of_repeated_keys(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=command)(guarded)()


@functools.cache
def register(command: str) -> None:
    """Make a command's schema and the resolvers of `conf/` known to Hydra."""
    ConfigStore.instance().store(name=f"{command}_schema", node=COMMANDS[command])
    OmegaConf.register_new_resolver("cache_dir", _cache_dir, replace=True)
    OmegaConf.register_new_resolver("distinct_folder", distinct_folder, replace=True)
    OmegaConf.register_new_resolver("package_dir", lambda: str(PACKAGE), replace=True)
    OmegaConf.register_new_resolver("times", lambda a, b: float(f"{a * b:.10g}"), replace=True)


def composed(command: str, overrides: Sequence[str] = (), with_hydra: bool = False) -> DictConfig:
    """The configuration of `python -m instruct_lit.<command> <overrides>`, outside of `run_command`.

    Raises: an exception of Hydra or OmegaConf for overrides that do not apply.
    """
    register(command)
    with beside_a_command(), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(command, list(overrides), return_hydra_config=with_hydra)


def choices_of(group: str) -> list[str]:
    """The files of a group, `base` excepted, which others include."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem != "base")


def configuration_files(hydra_config: Any, command: str) -> list[str]:
    """The options of a command line by which Hydra, whose own configuration is given, finds files outside `conf/`."""
    name, sources = hydra_config["job"]["config_name"], hydra_config["runtime"]["config_sources"]
    options = {"main": "--config-path", "command-line": "--config-dir"}
    paths = [(options[s["provider"]], s["path"]) for s in sources if s["provider"] in options and s["schema"] == "file"]
    files = [f"{option}={path}" for option, path in paths if Path(path) != CONF]
    files += [f"--config-name={name}"] if name != command else []
    return files + [given for given in hydra_config["overrides"]["hydra"] if "hydra.searchpath=" in given]


def expanded(argument: str) -> str:
    """The argument of a command line with `~/` at the start of its value expanded, which many shells leave.

    Raises: ConfigError without such a home folder.
    """
    key, _, value = argument.partition("=")
    if not re.match(r"~[\w.-]*/|~$", value):
        return argument
    try:
        return f"{key}={Path(value).expanduser()}"
    except RuntimeError as error:
        raise ConfigError(f"{argument}: there is no such home folder on this machine; write the whole path") from error


def runs_of(config: Any) -> list[str]:
    """The value of `run` as a list."""
    if config.run is None:
        return []
    return [str(run) for run in config.run] if OmegaConf.is_list(config.run) else [str(config.run)]


def output_dir() -> Path:
    """Hydra's folder of this run."""
    return Path(HydraConfig.get().runtime.output_dir)


def _cache_dir() -> str:
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "instruct-lit")  # an empty variable is none
    return str(Path(os.environ.get("INSTRUCT_LIT_CACHE") or default).expanduser())


def differences(config: DictConfig, config_name: str) -> list[tuple[str, Any, Any]]:
    """Every key whose value is not that of the command's defaults: (key, default, value).

    All keys, with None for the default, if the defaults need a group of a satellite that was deleted.
    """
    try:
        default = flat(hydra.compose(config_name))
    except MissingConfigException:
        default = {}
    given = flat(config)
    keys = sorted({*default, *given})
    return [(key, default.get(key), given.get(key)) for key in keys if default.get(key) != given.get(key)]


def nodes_of(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every node of plain values with its dotted key, from the root on; the items of a list under the list's key."""
    yield key, values
    if isinstance(values, dict):
        for name, inner in values.items():
            yield from nodes_of(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list):
        for inner in values:
            yield from nodes_of(inner, key)


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of a configuration by its dotted key."""
    container = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if not isinstance(container, dict) or not container:
        return {prefix: container}
    nested = (flat(value, f"{prefix}.{key!s}" if prefix else str(key)) for key, value in container.items())
    return {key: value for leaves in nested for key, value in leaves.items()}
