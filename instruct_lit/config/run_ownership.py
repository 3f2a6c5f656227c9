"""A run owns its folder: a default name that no other run has, and a lock while it works."""

import atexit
import functools
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from instruct_lit.errors import ConfigError
from instruct_lit.locks import hold_until_exit, is_locked

LOCK = Path(".hydra") / "run.lock"
_OPTION = "hydra.run.dir="
_BEFORE_WORK = {".hydra", "config.yaml", "multirun.yaml", ".submitit", ".workers", "study.db"}
_RANKS = ("LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")  # set by launchers of several processes


@functools.cache
def distinct_folder(folder: str) -> str:
    """The folder, created, or `<folder>-2`, `-3`, … where another run has it already; the same for all calls.

    Processes of one distributed run share the folder, so there it is unchanged.
    """
    if any(name in os.environ for name in _RANKS):
        return folder
    for path in (folder, *(f"{folder}-{n}" for n in range(2, 1002))):
        try:
            parents = missing_parents(path)
            Path(path).mkdir(parents=True)
            remove_if_unused(path, parents)
            return path
        except FileExistsError:
            continue
        except OSError:  # reported when Hydra creates it
            return path
    return folder


def missing_parents(folder: str) -> list[Path]:
    """The folders above a folder that do not exist yet, the innermost first."""
    return [parent for parent in Path(folder).absolute().parents if not parent.exists()]


def remove_if_unused(folder: str, parents: Sequence[Path]) -> None:
    """Remove a new folder at exit, and `parents` that are empty, if no run or trial has written into it.

    So a command that is refused, as after a mistyped value, leaves none.
    """

    def remove(path: Path) -> None:
        if path.is_dir() and {entry.name for entry in path.iterdir()} <= _BEFORE_WORK:
            shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):  # the first one that is not empty
                for parent in parents:
                    parent.rmdir()

    atexit.register(remove, Path(folder).absolute())


def refuse_folder_in_use(arguments: Sequence[str], command: str = "train") -> None:
    """Raise ConfigError when a run works in the folder that a command line names, before Hydra writes into it.

    The folder of a training is refused to other commands, which would replace its responses, page and overrides.
    """
    for argument in arguments:
        folder = Path(argument.removeprefix(_OPTION).strip("'\""))
        if argument.startswith(_OPTION) and _is_first_process():
            if is_locked(folder / LOCK):
                raise _in_use(folder)
            if command != "train" and (folder / "provenance.json").is_file():
                reason = f"holds a training, whose files {command} would replace"
                raise ConfigError(f"{argument}: {reason}; choose another, such as {_OPTION}{folder / command}")


def own_folder(folder: Path) -> None:
    """Lock a run's folder until this process ends. Raises: ConfigError when another run works in it."""
    if _is_first_process():
        hold_until_exit(folder / LOCK, _in_use(folder))


def _is_first_process() -> bool:
    return not any(int(os.environ.get(name) or 0) for name in _RANKS)


def _in_use(folder: Path) -> ConfigError:
    return ConfigError(f"{_OPTION}{folder}: another run works in this folder; wait until it ends, or choose another")
