"""Undocumented parts of bitsandbytes that this package uses, each with the reason.

`tests/hf/test_qlora.py` fails when a new version changes them.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn


def keep_differentiable(hf: nn.Module) -> None:
    """Let the 4-bit layers of a model be trained through after an evaluation, on a processor too.

    Undocumented: `support_avx512bf16_for_cpu`. Where it is set, the first evaluation sorts the weights anew for a
    product that has no gradient, and every later training step would use it.
    """
    layers: Iterable[Any] = hf.modules()
    for layer in layers:
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
