"""Undocumented parts of Hydra that this program uses, each with the reason.

`tests/config/test_compat_hydra.py` names the part that a new version lacks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins

__all__ = ["IntervalSweep", "Override", "RangeSweep", "beside_a_command", "launcher_of", "parse_overrides"]


@contextmanager
def beside_a_command() -> Iterator[None]:
    """Let a configuration be composed while a command of Hydra runs, which keeps its own.

    Undocumented: `GlobalHydra.hydra`. The public `initialize_config_dir` refuses to start inside of a command, and the
    public `GlobalHydra.clear` would take the command's own away.
    """
    running, outer = GlobalHydra.instance(), GlobalHydra.instance().hydra
    running.hydra = None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = outer


def parse_overrides(overrides: Sequence[str], config_loader: Any = None) -> list[Override]:
    """Overrides parsed by Hydra's grammar; HydraException for one that is not in it.

    Undocumented: `OverridesParser` and the types of its result, which Hydra's own sweepers use.
    """
    return OverridesParser.create(config_loader=config_loader).parse_overrides(list(overrides))


def launcher_of(hydra_context: Any, task_function: Any, config: Any) -> Any:
    """The launcher of a configuration, set up.

    Undocumented: `Plugins.instantiate_launcher`, by which Hydra's own sweepers get theirs.
    """
    return Plugins.instance().instantiate_launcher(
        hydra_context=hydra_context, task_function=task_function, config=config
    )
