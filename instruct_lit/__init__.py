"""instruct-lit: teach a GPT to follow instructions.

The names below are the public Python API; each is imported when it is first used, so that `import instruct_lit` costs
nothing. docs/python-api.md shows them at work.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

# `python -m` looks for modules in the current folder first: a file torch.py there would take the place of torch.
if sys.argv[:1] == ["-m"] and sys.path[:1] == [os.getcwd()]:
    sys.path.append(sys.path.pop(0))

if TYPE_CHECKING:
    from instruct_lit.config.api import NANO, ask, open_model
    from instruct_lit.core.data.batching import Collator
    from instruct_lit.core.data.datamodule import InstructionData
    from instruct_lit.core.data.encode import Encoder
    from instruct_lit.core.data.example import Example
    from instruct_lit.core.generation.engine import Engine
    from instruct_lit.core.generation.sampling import SamplingSettings
    from instruct_lit.core.training.module import InstructionTuner

__version__ = "0.1.0"

_HOMES = {
    "NANO": "instruct_lit.config.api",
    "ask": "instruct_lit.config.api",
    "open_model": "instruct_lit.config.api",
    "Collator": "instruct_lit.core.data.batching",
    "InstructionData": "instruct_lit.core.data.datamodule",
    "Encoder": "instruct_lit.core.data.encode",
    "Example": "instruct_lit.core.data.example",
    "Engine": "instruct_lit.core.generation.engine",
    "SamplingSettings": "instruct_lit.core.generation.sampling",
    "InstructionTuner": "instruct_lit.core.training.module",
}
__all__ = [
    "NANO", "Collator", "Encoder", "Engine", "Example", "InstructionData", "InstructionTuner", "SamplingSettings",
    "ask", "open_model",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'instruct_lit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
