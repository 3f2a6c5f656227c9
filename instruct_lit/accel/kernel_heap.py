"""The kernels of a CPU's matrix library in a heap of their own, apart from the activations.

oneDNN makes kernels at the first product of each shape and keeps them, 250 KB and hundreds of small objects each. Made
within a step they lie between activations for good: the holes around them never merge, a hole between two of them is a
few bytes too small for the next tensor of its size (aligned blocks are searched with a margin), and the heap grows with
every new shape. glibc gives each thread a heap (an arena) of its own; so a second thread computes the first product of
a shape.

Source: GNU C Library 2.36, malloc/malloc.c (`_int_memalign`) and malloc/arena.c; oneDNN, "Primitive Cache".
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

N_KNOWN = 512  # shapes after which all count as new; oneDNN keeps 1,024 kernels

KERNEL_BYTES = 2 * 258_376  # of a bf16 product: oneDNN 3 made two kernels on average, 0.57 MiB with all else

in_thread = True  # not where tensors without values are counted, whose mode is one of the thread
_known: set[tuple[Any, ...]] = set()


def product(operation: Callable[..., Tensor], *factors: Any, **options: Any) -> Tensor:
    """`operation(*factors, **options)`, which records no gradient; the first one of its shapes in the second thread."""
    tensors = [x for x in factors if x is not None]
    # Shards compute by settings of their own thread.
    if not factors[0].is_cpu or any(type(x) not in (Tensor, nn.Parameter) for x in tensors):
        return operation(*factors, **options)
    key = (operation, *(x.shape for x in tensors))
    if key in _known:
        return operation(*factors, **options)
    if len(_known) >= N_KNOWN:
        _known.clear()
    _known.add(key)
    if not in_thread:
        return operation(*factors, **options)
    # Not kept, since a process with threads is not forked safely; kernels are made for a number of threads of torch's.
    with ThreadPoolExecutor(1, "kernels", torch.set_num_threads, (torch.get_num_threads(),)) as thread:
        return thread.submit(torch.no_grad()(operation), *factors, **options).result()


def kernel_bytes() -> int:
    """What the kernels of the bf16 products so far take."""
    return len(_known) * KERNEL_BYTES
