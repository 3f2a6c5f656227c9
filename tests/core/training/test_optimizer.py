"""Decay on matrices only; schedules by literal values."""

import pytest
import torch

from instruct_lit.core.model.gpt import GPT
from instruct_lit.core.training.optimizer import adamw, parameter_groups, schedule


def test_matrices_decay_and_vectors_do_not(tiny_model: GPT) -> None:
    decayed, kept = parameter_groups(tiny_model.named_parameters(), 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2} and {p.ndim for p in kept["params"]} == {1}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(tiny_model.parameters()))


def test_frozen_parameters_are_left_out(tiny_model: GPT) -> None:
    for parameter in tiny_model.blocks.parameters():
        parameter.requires_grad_(False)
    groups = parameter_groups(tiny_model.named_parameters(), 0.1)
    assert sum(len(g["params"]) for g in groups) == 4  # wte, wpe and the last normalisation
    tiny_model.requires_grad_(False)
    assert parameter_groups(tiny_model.named_parameters(), 0.1) == []


@pytest.mark.parametrize(
    ("decay", "min_ratio", "expected"),
    [
        ("constant", 0.0, [1 / 3, 2 / 3, 1, 1, 1, 1, 1]),
        ("linear", 0.0, [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25, 0]),
        ("linear", 0.2, [1 / 3, 2 / 3, 1, 0.8, 0.6, 0.4, 0.2]),
        ("cosine", 0.0, [1 / 3, 2 / 3, 1, 0.853553, 0.5, 0.146447, 0]),
    ],
)
def test_warm_up_and_decay_by_hand(decay: str, min_ratio: float, expected: list[float]) -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = adamw([{"params": [weight], "weight_decay": 0.0}], lr=10.0)
    scheduler = schedule(optimizer, 6, 2, decay, min_ratio)  # type: ignore[arg-type]
    found = []
    for _ in range(7):
        found.append(optimizer.param_groups[0]["lr"] / 10.0)
        optimizer.step()
        scheduler.step()
    assert found == pytest.approx(expected, abs=1e-6)
