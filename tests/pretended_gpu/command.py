"""A command of the program on a pretended GPU: `python -m tests.pretended_gpu.command <compiler> <folder> <device> train …`.

Prints at last, on the standard error, how many graphs were recorded and replayed.
"""

import runpy
import sys
from pathlib import Path

from tests.pretended_gpu import hooks

hooks.load(sys.argv[1], Path(sys.argv[2]), sys.argv[3])

from instruct_lit.accel import cuda_graphs, hardware  # noqa: E402
from tests.pretended_gpu.device import Graph, pretended_gpu  # noqa: E402

if __name__ == "__main__":
    cuda_graphs.borrowed = lambda gradient: gradient  # type: ignore[assignment]  # needs memory of a GPU
    hardware.matrix_rate = lambda *_: 1e12  # its products are a GPU's, and large
    device = sys.argv[3]
    module = f"instruct_lit.{sys.argv[4]}"
    sys.argv = [module, *sys.argv[5:]]
    try:
        with pretended_gpu(device):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        print(f"graphs: {Graph.n_recorded} recorded, {Graph.n_replayed} replayed", file=sys.stderr)
