"""Compiled models draw random numbers and recompute activations as plain ones do; requires a C++ compiler."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor

from instruct_lit.accel.step import compiled_form
from instruct_lit.core.model.attention import PackedDocuments
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.gpt import GPT, GPTConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler"),
]
LENGTHS = [9, 14, 6]
IDS = torch.arange(sum(LENGTHS)) % 99
POSITIONS = torch.cat([torch.arange(n) for n in LENGTHS])
INDEX = torch.tensor([3, 8, 8, 15, 20, 28])
MODELS = ["gpt", "llama", "llama lora"]


def model_of(name: str, dropout: float = 0.0, recomputes: bool = False) -> CausalLM:
    """A compiled model in training; with an adapter, dropout is that of the adapter."""
    torch.manual_seed(0)
    of_adapter = "lora" in name
    if name == "gpt":
        model: CausalLM = GPT(GPTConfig(99, 64, 48, 3, 3), dropout, recomputes)
        model.init_weights(0)
    else:
        transformers = pytest.importorskip("transformers")
        from instruct_lit.hf.adapters import Adapter
        from instruct_lit.hf.model import HFModel
        from tests.hf.test_model import OF

        config = OF["llama"]()
        config.attention_dropout = 0.0 if of_adapter else dropout
        hf = transformers.AutoModelForCausalLM.from_config(config)
        model = HFModel(hf, activation_checkpointing=recomputes)
        if of_adapter:
            Adapter(model, rank=3, dropout=dropout)
            for parameter_name, parameter in model.named_parameters():
                if "lora_B" in parameter_name:
                    parameter.data.normal_(0, 0.1)
    model.compiler = compiled_form
    return model.train()


def states_of(model: CausalLM) -> Tensor:
    return model.hidden_states(IDS, POSITIONS, PackedDocuments(LENGTHS), INDEX)


def gradients_of(model: CausalLM, seed: int) -> list[Tensor]:
    """The states and the gradients of a step with these random numbers."""
    torch.manual_seed(seed)
    model.zero_grad()
    states = states_of(model)
    (states * torch.linspace(-1, 1, states.numel()).view(states.shape)).sum().backward()
    return [states.detach(), *(p.grad.to_dense() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", MODELS)
def test_dropout_is_drawn_anew_at_each_step_and_keeps_the_expectation(name: str) -> None:
    model, means, errors = model_of(name, dropout=0.2), [], []
    for model.compiler in (None, compiled_form):
        with torch.no_grad():
            draws = torch.stack([states_of(model) for _ in range(200)])
        assert (draws[1:] - draws[:-1]).abs().amax((1, 2)).min() > 0
        means.append(draws.mean(0))
        errors.append(draws.var(0) / len(draws))
    z = (means[1] - means[0]) / (errors[0] + errors[1]).sqrt()
    assert 0.8 < z.std() < 1.25 and z.abs().max() < 6


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_recomputed_activations_change_no_gradient(name: str, dropout: float) -> None:
    kept, recomputed = (model_of(name, dropout, recomputes) for recomputes in (False, True))
    for seed in range(3):
        pairs = list(zip(gradients_of(kept, seed), gradients_of(recomputed, seed), strict=True))
        assert len(pairs) > 10
        for expected, found in pairs:
            assert (found - expected).norm() <= 1e-5 * expected.norm() + 1e-7


@pytest.mark.parametrize("name", MODELS)
def test_noise_on_embeddings_is_that_of_the_plain_model(name: str) -> None:
    model = model_of(name)
    for model.embedding_noise in (0.05, torch.tensor(0.2)):
        found = []
        for model.compiler in (None, compiled_form):
            found.append(gradients_of(model, seed=1))
        assert (found[0][0] - gradients_of(model, seed=2)[0]).norm() > 1e-3
        for expected, compiled in zip(*found, strict=True):
            assert (compiled - expected).norm() <= 1e-5 * expected.norm() + 1e-6
