"""Answers are given where a model computes fastest, and it is left where it was."""

import contextlib

import pytest
import torch

from instruct_lit.core.model.causal import best_device, on_device, sum_dtype
from instruct_lit.core.model.gpt import GPT


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu", None])
def test_the_best_device_is_a_gpu_of_any_kind(monkeypatch: pytest.MonkeyPatch, kind: str | None) -> None:
    found = None if kind is None else torch.device(kind)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    assert best_device() == (found or torch.device("cpu"))
    assert sum_dtype(best_device()) == (torch.float32 if kind == "mps" else torch.float64)


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
