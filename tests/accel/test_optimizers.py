"""Muon with AdamW beside it, and 8-bit AdamW: which parameter goes where, and a state that comes back."""

import copy
import sys
import types
from typing import Any

import pytest
import torch

from instruct_lit.accel.optimizers import adamw_8bit, muon
from instruct_lit.core.model.gpt import GPT
from instruct_lit.core.training.optimizer import schedule
from instruct_lit.errors import ConfigError


def steps(model: GPT, optimizer: Any, n: int, start: int = 0) -> None:
    for step in range(start, start + n):
        random = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=random)
        optimizer.step()


def test_muon_gets_the_matrices_of_the_blocks_and_adamw_the_rest(tiny_model: GPT) -> None:
    optimizer = muon(tiny_model, lr=0.1, weight_decay=0.2)
    first, second = optimizer.parts
    inner = {id(p) for p in tiny_model.blocks.parameters() if p.ndim == 2}
    assert {id(p) for group in first.param_groups for p in group["params"]} == inner
    others = {id(p): group["weight_decay"] for group in second.param_groups for p in group["params"]}
    assert others.keys() == {id(p) for p in tiny_model.parameters()} - inner
    assert all(others[id(p)] == (0.2 if p.ndim == 2 else 0.0) for p in tiny_model.parameters() if id(p) in others)


def test_the_schedule_moves_the_rate_of_both(tiny_model: GPT) -> None:
    optimizer = muon(tiny_model, lr=0.1)
    scheduler = schedule(optimizer, 10, 0, "linear")
    steps(tiny_model, optimizer, 1)
    scheduler.step()
    assert [g["lr"] for part in optimizer.parts for g in part.param_groups] == pytest.approx([0.09] * 3)


def test_muons_step_is_orthogonal_and_adamws_is_adamws(tiny_model: GPT) -> None:
    before = copy.deepcopy(tiny_model)
    optimizer = muon(tiny_model, lr=0.01, weight_decay=0.0)
    steps(tiny_model, optimizer, 1)
    change = tiny_model.blocks[0].attn.proj.weight - before.blocks[0].attn.proj.weight  # type: ignore[union-attr]
    values = torch.linalg.svdvals(change)
    # Singular values near one, times 0.2 · sqrt(32) · lr; Newton and Schulz come near one only.
    assert values.min() / (0.2 * 32**0.5 * 0.01) > 0.5 and values.max() / (0.2 * 32**0.5 * 0.01) < 1.4
    change = (tiny_model.wte.weight - before.wte.weight).abs()
    torch.testing.assert_close(change, torch.full_like(change, 0.01), rtol=0.02, atol=0)


def test_its_state_comes_back(tiny_model: GPT) -> None:
    whole, parts = copy.deepcopy(tiny_model), copy.deepcopy(tiny_model)
    steps(whole, muon(whole, lr=0.01), 4)
    first = muon(parts, lr=0.01)
    steps(parts, first, 2)
    second = muon(parts, lr=0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(parts, second, 2, start=2)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)


def test_eight_bits_for_the_blocks_and_32_for_the_embeddings(tiny_model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    overridden: list[int] = []
    manager = types.SimpleNamespace(
        register_parameters=lambda parameters: None,
        override_config=lambda p, key, value: overridden.append(id(p)) if (key, value) == ("optim_bits", 32) else None,
    )
    optim = types.SimpleNamespace(
        GlobalOptimManager=types.SimpleNamespace(get_instance=lambda: manager), AdamW8bit=torch.optim.AdamW
    )
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.SimpleNamespace(optim=optim))
    optimizer = adamw_8bit(tiny_model, lr=1e-3, weight_decay=0.3)
    assert set(overridden) == {id(tiny_model.wte.weight), id(tiny_model.wpe.weight)}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match="needs bitsandbytes; pip install bitsandbytes"):
        adamw_8bit(tiny_model, lr=1e-3)


def test_moments_of_eight_bits_train_as_those_of_32(tiny_model: GPT) -> None:
    pytest.importorskip("bitsandbytes")
    model, other = tiny_model, copy.deepcopy(tiny_model)
    optimizer, wide = adamw_8bit(model, lr=1e-3), torch.optim.AdamW(other.parameters(), lr=1e-3, weight_decay=0.0)
    steps(model, optimizer, 5)
    steps(other, wide, 5)
    matrix = model.blocks[0].mlp.fc.weight
    assert optimizer.state[matrix]["state1"].dtype == torch.uint8
    assert optimizer.state[model.wte.weight]["state1"].dtype == torch.float32
    moved = (other.blocks[0].mlp.fc.weight - matrix).abs().max()
    assert 0 < moved < 1e-3
