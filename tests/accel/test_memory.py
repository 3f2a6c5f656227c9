"""Memory of this machine: peak, free, limited, and advice when it is exhausted."""

import re
import resource
import sys
from collections.abc import Callable

import pytest
import torch

from instruct_lit.accel.memory import PeakMemory, _total, advice, explained_memory, free_memory, limited_memory
from instruct_lit.errors import TrainingError

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


def test_memory_of_other_gpus_is_their_own_or_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    apple, intel = torch.device("mps"), torch.device("xpu", 0)
    assert 10**6 < PeakMemory("mps").read() < 10**15 and free_memory(apple) is None and _total(apple) == _total(CPU)
    own = {"mem_get_info": lambda _: (3, 8), "max_memory_allocated": lambda: 5, "reset_peak_memory_stats": lambda: None}
    for name, function in own.items():
        monkeypatch.setattr(torch.xpu, name, function)
    assert (PeakMemory("xpu").read(), free_memory(intel), _total(intel)) == (5, 3, 8)


def test_without_a_number_nothing_is_limited() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with limited_memory(CPU, None):
        assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from Linux' files")
def test_free_memory_is_what_this_machine_can_give() -> None:
    free = free_memory(CPU)
    assert free is not None and 10**6 < free < 10**15


@pytest.mark.parametrize(
    ("total", "states", "peak", "batch_size", "message"),
    [
        (10e9, 4e9, 9e9, 8, r"9.0 of 10.0 GB were in use, .* take 4.0 GB; the same optimizer step .* data.batch_size=4 "
                            "trainer.accumulate_grad_batches=4;"),
        (10e9, 4e9, 40e9, 8, "data.batch_size=1 trainer.accumulate_grad_batches=16;"),
        (10e9, 4e9, 9e9, 1, "data.batch_size is 1: lower data.max_length"),
        (10e9, 9.5e9, 9.6e9, 8, "a smaller batch cannot help: use a smaller model, or adapter=lora"),
    ],
)  # fmt: skip
def test_the_advice_says_by_how_much(total: float, states: float, peak: float, batch_size: int, message: str) -> None:
    assert re.search(message, advice(int(total), int(states), int(peak), batch_size, 2))


def test_memory_that_the_system_refuses_is_explained(make_tuner: Callable) -> None:
    """A real refusal: more than any machine has."""
    with pytest.raises(TrainingError, match=r"out of memory: \d+\.\d of .*data.batch_size=4"):  # noqa: SIM117
        with explained_memory(make_tuner(), CPU, PeakMemory("cpu"), 8, 1):
            torch.empty(2**62, dtype=torch.uint8)


def test_other_errors_stay_what_they_are(make_tuner: Callable) -> None:
    with pytest.raises(RuntimeError, match="shapes"), explained_memory(make_tuner(), CPU, PeakMemory("cpu"), 8, 1):
        raise RuntimeError("shapes do not fit")


def test_peak_memory_is_what_was_in_use() -> None:
    memory = PeakMemory("cpu")
    block = bytearray(64 << 20)
    assert memory.read() > len(block)
