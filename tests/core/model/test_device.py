"""Answers are given where a model computes fastest, and it is left where it was."""

import contextlib
from pathlib import Path

import pytest
import torch

from instruct_lit.core.model import device as module
from instruct_lit.core.model.device import best_device, multiplies_in_bf16, multiplies_in_tiles, on_device
from instruct_lit.core.model.gpt import GPT


def test_the_best_device_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_gpu", lambda: True)
    assert best_device() == torch.device("cuda")
    monkeypatch.setattr(module, "has_gpu", lambda: False)
    assert best_device() == torch.device("cpu")


def test_a_model_comes_back_whatever_happens(tiny_model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[torch.device] = []
    monkeypatch.setattr(tiny_model, "to", moves.append)
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    with contextlib.suppress(KeyError), on_device(tiny_model, gpu):
        assert moves == [gpu]
        raise KeyError
    assert moves == [gpu, cpu]
    with on_device(tiny_model, cpu):
        assert len(moves) == 2, "it is there"


def test_bf16_needs_a_matrix_library_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert multiplies_in_bf16() == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not multiplies_in_bf16()


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the system does not tell what its processor has")
def test_tiles_are_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    assert multiplies_in_tiles() == ("amx_tile" in Path("/proc/cpuinfo").read_text().split())
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert not multiplies_in_tiles(), "a torch that does not tell"
