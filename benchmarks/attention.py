"""Attention in training on a CPU: the fused kernel against products of matrices.

    python -m benchmarks.attention

Milliseconds for a layer's forward and backward pass, the best of eight, alternating; why
`instruct_lit.accel.attention_products` chooses as it does.
"""

from __future__ import annotations

import math
import time
from itertools import product
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import common
from instruct_lit import accel
from instruct_lit.accel import attention_products as products
from instruct_lit.accel.hardware import keep_freed_memory
from instruct_lit.core.model.attention import AttentionLayout, CausalRows, PackedDocuments

N_HEADS, D_HEAD = 12, 64
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DOCUMENTS = {  # lengths of the documents, and of the prefix they share
    "packed: 8 of 28 to 40 + 24": ([33, 35, 40, 28, 30, 31, 36, 31], 24),
    "packed: 8 of 200 + 24": ([200] * 8, 24),
    "packed: 4 of 250 to 400 + 24": ([400, 300, 250, 380], 24),
    "packed: 900 and 1000": ([1000, 900], 0),
    "packed: 2048": ([2048], 0),
    "packed: 4096": ([4096], 0),
}
ROWS = [(8, 64), (8, 128), (8, 256), (8, 512), (4, 1024)]


def milliseconds(
    layout: AttentionLayout, tokens: tuple[int, ...], dtype: torch.dtype, by_products: bool
) -> tuple[float, float]:
    """Forward and backward time of one layer."""
    qkv = torch.randn(*tokens, 3, N_HEADS, D_HEAD).to(dtype).requires_grad_()
    with (
        mock.patch.object(products, "suits", return_value=by_products),
        mock.patch.object(products, "suits_rows", return_value=by_products),
    ):
        start = time.perf_counter()
        out = layout.attend(0, *qkv.unbind(-3), 0.0)
        middle = time.perf_counter()
        out.backward(torch.ones_like(out))
    return (middle - start) * 1e3, (time.perf_counter() - middle) * 1e3


def main() -> None:
    accel.install()
    keep_freed_memory()
    table = Table(title="attention, ms forward + backward")
    ways = list(product(common.precisions("cpu"), (False, True)))
    for column in ("batch", *(f"{'products' if by_products else 'fused'} {name}" for name, by_products in ways)):
        table.add_column(column)
    for name in [*DOCUMENTS, *ROWS]:
        best = dict.fromkeys(ways, (math.inf, math.inf))
        for _ in range(8):
            for way in ways:
                # A new layout each time: it keeps its masks in the precision that first asks.
                packed = PackedDocuments(*DOCUMENTS[name]) if name in DOCUMENTS else None
                tokens = (packed.n_tokens,) if packed else name
                found = milliseconds(packed or CausalRows(), tokens, DTYPES[way[0]], way[1])
                best[way] = min(best[way], found, key=sum)
        title = name if name in DOCUMENTS else f"padded: {name[0]} of {name[1]}"
        table.add_row(title, *(f"{forward:.1f} + {backward:.1f}" for forward, backward in best.values()))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
