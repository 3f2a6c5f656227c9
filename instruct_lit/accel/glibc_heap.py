"""The memory that tensors on a CPU take from the system: glibc's heap with its holes.

Blocks up to `KEPT_BYTES` lie in the heap, which is never returned (`hardware.keep_freed_memory`); larger ones have
pages of their own. While a forward pass records its graph, small objects take the edges of the blocks and stay: holes
do not merge, and none serves a block of its own size, since an aligned block is searched with a margin (`MARGIN`).
After the backward pass these objects are gone and the holes are one.

Source: GNU C Library 2.36, malloc/malloc.c: `_int_memalign`, `_int_malloc` (best fit), `_int_free`, `sysmalloc`.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from instruct_lit.accel.compat_torch import LiveTensors
from instruct_lit.accel.hardware import KEPT_BYTES

HEADER, ALIGNMENT, SMALLEST = 16, 64, 32  # bytes: of a block's header, torch's alignment, the smallest block
MARGIN = HEADER + ALIGNMENT + SMALLEST


class HeapTensors(LiveTensors):
    """Counts live tensors; `peak` is the most memory that was taken from the system for them."""

    def __init__(self) -> None:
        super().__init__()
        self.heap = self.mapped = 0  # bytes taken from the system
        self._holes: list[int] | None = None  # ascending, while a graph is recorded

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, a graph is recorded."""
        self._holes = [self.heap - (self.now - self.mapped)]
        yield
        self._holes = None

    def add(self, tensor: Tensor) -> bool:
        is_new = super().add(tensor)
        if is_new:
            self._take(tensor.untyped_storage().nbytes())
            self.peak = max(self.peak, self.heap + self.mapped)
        return is_new

    def drop(self, key: int) -> None:
        n_bytes = self._storages[key]
        super().drop(key)
        if n_bytes > KEPT_BYTES:
            self.mapped -= n_bytes
        elif self._holes is not None:
            insort(self._holes, n_bytes + HEADER)

    def _take(self, n_bytes: int) -> None:
        if n_bytes > KEPT_BYTES:
            self.mapped += n_bytes
        elif self._holes is None:
            self.heap = max(self.heap, self.now - self.mapped)
        elif (place := bisect_left(self._holes, n_bytes + MARGIN)) < len(self._holes):
            insort(self._holes, self._holes.pop(place) - n_bytes - ALIGNMENT)
        else:
            self.heap += n_bytes + ALIGNMENT
