"""The sweeper for Hydra's search for plugins; none without `instruct_lit.sweeps`, which is a satellite."""

from importlib.util import find_spec

if find_spec("instruct_lit.sweeps") is not None:
    from ._sweeper import OptunaSweeper

    __all__ = ["OptunaSweeper"]
