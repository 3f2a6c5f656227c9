"""Answers are given where a model computes fastest, and it is left where it was."""

import contextlib

import pytest
import torch

from instruct_lit.core.model import causal as module
from instruct_lit.core.model.causal import best_device, on_device
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
