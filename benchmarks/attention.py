"""Attention of short documents on a CPU: the fused kernel against two matrix products.

    python -m benchmarks.attention

Milliseconds for a layer's forward and backward pass, the best of eight; why `instruct_lit.model.attention.attention`
chooses as it does.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from instruct_lit.model import attention as module

SHAPES = [
    (1, 12, 192, 64, 24),
    (8, 12, 32, 64, 24),
    (16, 4, 20, 32, 24),
    (96, 4, 60, 32, 0),
    (8, 12, 128, 64, 24),
    (8, 12, 512, 64, 0),
    (2, 12, 1024, 64, 0),
]


def fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, bias)


def ours(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return module.attention(q, k, v, bias, 0.0)


def milliseconds(attend: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> tuple[float, float]:
    """Best forward and backward times of eight."""
    n_rows, n_heads, n_tokens, d_head, n_prefix = shape
    visible = torch.ones(n_tokens, n_prefix + n_tokens, dtype=torch.bool).tril(n_prefix)
    bias = module.bias_of(visible, torch.empty((), dtype=dtype))
    best = [float("inf")] * 2
    for _ in range(8):
        q, k, v = (
            torch.randn(n_rows, n, n_heads, d_head).to(dtype).transpose(1, 2).requires_grad_()
            for n in (n_tokens, n_prefix + n_tokens, n_prefix + n_tokens)
        )
        start = time.perf_counter()
        out = attend(q, k, v, bias)
        middle = time.perf_counter()
        torch.autograd.grad(out.sum(), (q, k, v))
        best = [min(best[0], middle - start), min(best[1], time.perf_counter() - middle)]
    return best[0] * 1e3, best[1] * 1e3


def main() -> None:
    module.SHORT_TOKENS = 1 << 20
    table = Table(title="attention, ms forward + backward")
    for column in (
        "rows, heads, tokens, width, prefix",
        "fused bf16",
        "two products bf16",
        "fused fp32",
        "two products fp32",
    ):
        table.add_column(column)
    for shape in SHAPES:
        cells = [milliseconds(f, shape, t) for t in (torch.bfloat16, torch.float32) for f in (fused, ours)]
        table.add_row(str(shape), *(f"{forward:.1f} + {backward:.1f}" for forward, backward in cells))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
