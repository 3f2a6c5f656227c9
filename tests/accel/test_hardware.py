"""What is allowed of the memory of this machine."""

import resource
import sys

import pytest
import torch

from instruct_lit.accel.hardware import free_memory, limited_memory

CPU = torch.device("cpu")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is refused on Linux alone")
def test_more_memory_than_allowed_is_refused_and_granted_again_afterwards() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with limited_memory(CPU, 600_000_000):
        torch.empty(300_000_000, dtype=torch.uint8)
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            torch.empty(900_000_000, dtype=torch.uint8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    torch.empty(900_000_000, dtype=torch.uint8)


def test_without_a_number_nothing_is_limited() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with limited_memory(CPU, None):
        assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from Linux' files")
def test_free_memory_is_what_this_machine_can_give() -> None:
    free = free_memory(CPU)
    assert free is not None and 10**6 < free < 10**15
