"""Attention of packed documents on a CPU: the fused kernel against products of matrices.

    python -m benchmarks.attention

Milliseconds for a layer's forward and backward pass, the best of twelve, alternating; why `instruct_lit.model.attention_products.suits`
chooses as it does.
"""

from __future__ import annotations

import math
import time
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table

from instruct_lit.model import attention_products as products
from instruct_lit.model.attention import PackedDocuments
from instruct_lit.training.hardware import keep_freed_memory

N_HEADS, D_HEAD = 12, 64
BATCHES = {  # lengths of the documents, and of the prefix they share
    "8 of 28 to 40 + 24": ([33, 35, 40, 28, 30, 31, 36, 31], 24),
    "8 of 200 + 24": ([200] * 8, 24),
    "4 of 250 to 400 + 24": ([400, 300, 250, 380], 24),
    "2 of 900 and 1000": ([1000, 900], 0),
    "1 of 1000, 7 of 60 + 24": ([1000] + [60] * 7, 24),
}


def milliseconds(lengths: list[int], n_prefix: int, dtype: torch.dtype, by_products: bool) -> tuple[float, float]:
    """Forward and backward time of one layer."""
    layout = PackedDocuments(lengths, n_prefix)
    shape = layout.n_tokens, 3, N_HEADS, D_HEAD
    qkv = torch.randn(shape).to(dtype).requires_grad_()
    with mock.patch.object(products, "suits", return_value=by_products):
        start = time.perf_counter()
        out = layout.attend(0, *qkv.unbind(1), 0.0).flatten(-2)
        middle = time.perf_counter()
        out.backward(torch.ones_like(out))
    return (middle - start) * 1e3, (time.perf_counter() - middle) * 1e3


def main() -> None:
    keep_freed_memory()
    table = Table(title="attention, ms forward + backward")
    for column in ("documents + prefix", "fused bf16", "products bf16", "fused fp32", "products fp32"):
        table.add_column(column)
    ways = [(dtype, by_products) for dtype in (torch.bfloat16, torch.float32) for by_products in (False, True)]
    for name, batch in BATCHES.items():
        best = dict.fromkeys(ways, (math.inf, math.inf))
        for _ in range(12):
            for way in ways:
                best[way] = min(best[way], milliseconds(*batch, *way), key=sum)
        table.add_row(name, *(f"{forward:.1f} + {backward:.1f}" for forward, backward in best.values()))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
