"""instruct-lit: teach a GPT to follow instructions.

The names below are the public Python API; each is imported when it is first used, so that `import instruct_lit` costs
nothing. docs/python-api.md shows them at work.
"""

import os
import sys
from contextlib import suppress

# `python -m` looks for modules in the current folder first: a file torch.py there would take the place of torch, and
# h2.py that of an optional library. Only a checkout that is not installed is imported from there.
with suppress(FileNotFoundError):  # of a current folder that was removed, which a command reports
    if sys.argv[:1] == ["-m"] and sys.path[:1] == [os.getcwd()] and not sys.flags.safe_path:
        sys.path.pop(0)
        if __file__ == os.path.join(os.getcwd(), "instruct_lit", "__init__.py"):
            sys.path.append(os.getcwd())

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    "NANO": "config.api", "ask": "config.api", "open_model": "config.api", "Collator": "core.data.batching",
    "InstructionData": "core.data.datamodule", "Encoder": "core.data.encode", "Example": "core.data.example",
    "Engine": "core.generation.engine", "SamplingSettings": "core.generation.sampling",
    "InstructionTuner": "core.training.module",
}  # fmt: skip
__all__ = [
    "NANO", "Collator", "Encoder", "Engine", "Example", "InstructionData", "InstructionTuner", "SamplingSettings",
    "ask", "open_model",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'instruct_lit' has no attribute {name!r}")
    return getattr(import_module(f"instruct_lit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
