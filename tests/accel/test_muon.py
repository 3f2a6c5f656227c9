"""Muon with AdamW beside it: which parameter gets which, and a state that is restored."""

import copy
from typing import Any

import pytest
import torch

from instruct_lit.accel.muon import muon
from instruct_lit.core.model.gpt import GPT
from instruct_lit.core.training.optimizer import schedule


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
    # Singular values near one, times 0.2 · sqrt(32) · lr; the Newton-Schulz iteration is approximate.
    assert values.min() / (0.2 * 32**0.5 * 0.01) > 0.5 and values.max() / (0.2 * 32**0.5 * 0.01) < 1.4
    change = (tiny_model.wte.weight - before.wte.weight).abs()
    torch.testing.assert_close(change, torch.full_like(change, 0.01), rtol=0.02, atol=0)


def test_its_state_is_restored(tiny_model: GPT) -> None:
    whole, parts = copy.deepcopy(tiny_model), copy.deepcopy(tiny_model)
    steps(whole, muon(whole, lr=0.01), 4)
    first = muon(parts, lr=0.01)
    steps(parts, first, 2)
    second = muon(parts, lr=0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(parts, second, 2, start=2)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)
