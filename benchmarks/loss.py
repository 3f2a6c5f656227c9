"""Head and cross-entropy on a CPU: torch's `linear_cross_entropy` against ours.

    python -m benchmarks.loss

Milliseconds for loss and gradients of a batch of GPT-2 124M, the better of two, and the norm of the difference of the
head's gradient to that of the whole logits in fp32, relative. `kept` is ours with the memory of a run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks import common
from instruct_lit.accel.cross_entropy import summed_cross_entropy
from instruct_lit.accel.hardware import keep_freed_memory
from instruct_lit.accel.weight_copies import LowPrecisionWeights

N_VOCAB, WIDTH, N_POSITIONS = 50257, 768, 128
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def ways_of(head: Tensor, dtype: torch.dtype) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Functions that give the summed loss of states and targets."""
    weight_copy = LowPrecisionWeights(nn.Module(), head, dtype, dtype).attach().of[id(head)]
    weights = torch.ones(N_POSITIONS)
    return {
        "whole logits": lambda h, t: F.cross_entropy(F.linear(h.to(dtype), head.to(dtype)).float(), t, reduction="sum"),
        "torch, in chunks": lambda h, t: F.linear_cross_entropy(
            h.to(dtype), head.to(dtype), t, reduction="sum", options=nn.LinearCrossEntropyOptions()
        ),
        "ours": lambda h, t: summed_cross_entropy(h, head, t, weights),
        "ours, kept": lambda h, t: summed_cross_entropy(h, head, t, weights, weight_copy),
    }


def main() -> None:
    keep_freed_memory()
    torch.manual_seed(0)
    head = nn.Parameter(torch.randn(N_VOCAB, WIDTH) * 0.02)
    table = Table(title=f"head and cross-entropy of {N_POSITIONS} positions, ms (difference)")
    names = common.precisions("cpu")
    for column in ("way", *names):
        table.add_column(column)
    hidden, targets = torch.randn(N_POSITIONS, WIDTH), torch.randint(N_VOCAB, (N_POSITIONS,))
    (exact,) = torch.autograd.grad(F.cross_entropy(F.linear(hidden, head), targets, reduction="sum"), [head])
    cells: dict[str, list[str]] = {}
    for name in names:
        for way, loss_of in ways_of(head, DTYPES[name]).items():
            best = math.inf
            for _ in range(2):
                states, head.grad = hidden.clone().requires_grad_(), None
                head.grad_dtype = DTYPES[name] if way == "ours, kept" else torch.float32  # type: ignore[attr-defined]
                start = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=name == "bf16" and way.startswith("ours")):
                    loss = loss_of(states, targets)
                loss.backward()
                best = min(best, time.perf_counter() - start)
            assert head.grad is not None
            difference = ((head.grad.float() - exact).norm() / exact.norm()).item()
            cells.setdefault(way, []).append(f"{best * 1e3:,.0f} ({difference:.0e})")
    for way, texts in cells.items():
        table.add_row(way, *texts)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
