"""The private attributes of Lightning that `distributed` uses exist."""

from types import SimpleNamespace

import pytest
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from instruct_lit.distributed.compat_lightning import forget_child_processes


@pytest.mark.parametrize("name", ["_setup_distributed"])
def test_the_strategy_has(name: str) -> None:
    assert hasattr(ModelParallelStrategy, name), f"ModelParallelStrategy.{name} is gone"
    assert hasattr(ModelParallelStrategy(), "_device_mesh"), "ModelParallelStrategy._device_mesh is gone"


def test_child_processes_are_in_a_list_of_the_launcher() -> None:
    launcher = _SubprocessScriptLauncher(None, 1, 1)  # type: ignore[arg-type]
    assert launcher.procs == [], "_SubprocessScriptLauncher.procs is gone"
    launcher = SimpleNamespace(procs=[1])
    forget_child_processes(launcher)
    assert launcher.procs == []
    forget_child_processes(None)
