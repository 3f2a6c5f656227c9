"""The model on paper, by hand."""

import pytest

from benchmarks.scaling import PAPER, paper
from instruct_lit.core.model.gpt import GPT, GPTConfig


def test_a_billion_parameters_on_eight_gpus() -> None:
    ddp, fsdp = (paper(10**9, 8, strategy) for strategy in ("ddp", "fsdp"))
    assert (ddp["state_gb"], fsdp["state_gb"]) == (16.0, 2.0)
    assert ddp["traffic_gb"] == fsdp["traffic_gb"] == pytest.approx(7.0)  # 7/8 of 8 bytes
    assert ddp["compute_ms"] == pytest.approx(6 * 16_384 / 400e12 * 1e9 * 1e3)
    assert ddp["traffic_ms"] == pytest.approx(35.0)
    assert ddp["efficiency"] == pytest.approx(245.76 / (245.76 + 17.5))


def test_the_sizes_are_those_of_the_models() -> None:
    import torch

    for name, shape in {"355M": (1024, 24, 16), "1.5B": (1600, 48, 25)}.items():
        d_model, n_layers, n_heads = shape
        with torch.device("meta"):
            model = GPT(GPTConfig(d_model=d_model, n_layers=n_layers, n_heads=n_heads))
        assert model.n_parameters == PAPER[name]
