"""The private state of Lightning's strategies and launchers for several processes; `tests` names each attribute."""

from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import init_device_mesh


def connect(strategy: ModelParallelStrategy) -> None:
    """Connect the processes; Lightning's `setup_environment` needs a module, and they wait for the first one's data."""
    strategy._setup_distributed()
    if strategy._device_mesh is None:
        strategy._device_mesh = init_device_mesh(
            strategy.root_device.type, (strategy.world_size,), mesh_dim_names=("data_parallel",)
        )


def forget_child_processes(launcher: Any) -> None:
    """Empty a launcher's list of child processes; its monitor would end this process after they were ended."""
    processes = getattr(launcher, "procs", None)
    if processes is not None:
        processes.clear()
