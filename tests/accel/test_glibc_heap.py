"""The heap of a few tensors, by hand."""

import torch

from instruct_lit.accel.glibc_heap import ALIGNMENT, HeapTensors
from instruct_lit.accel.hardware import KEPT_BYTES

MIB = 2**20


def block(n_bytes: int) -> torch.Tensor:
    return torch.empty(n_bytes, dtype=torch.uint8)


def test_a_hole_serves_smaller_blocks_alone_until_the_graph_is_gone() -> None:
    with HeapTensors() as live:
        with live.recording():
            temporary, kept = block(MIB), block(MIB)
            del temporary
            again = block(MIB)
            assert live.heap == 3 * (MIB + ALIGNMENT), "the hole is too small by the margin"
            smaller = block(MIB // 2)
            assert live.heap == 3 * (MIB + ALIGNMENT) and live.now == 2.5 * MIB
        del kept, again, smaller
        whole = block(3 * MIB)
        assert live.heap == live.peak == 3 * (MIB + ALIGNMENT), "nothing is returned, and the holes are one"
        with live.recording():
            more = block(MIB)
        assert live.heap == 4 * (MIB + ALIGNMENT)
    assert (whole.numel(), more.numel()) == (3 * MIB, MIB)


def test_large_blocks_are_returned() -> None:
    with HeapTensors() as live:
        large = block(KEPT_BYTES + 1)
        assert live.mapped == KEPT_BYTES + 1
        del large
        assert (live.mapped, live.heap, live.peak) == (0, 0, KEPT_BYTES + 1)
