"""The accelerated cross-entropy, in blocks and at once; its values are tested in tests/core/training/test_loss.py."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from instruct_lit.accel import cross_entropy as module
from instruct_lit.accel.cross_entropy import summed_cross_entropy
from instruct_lit.accel.step import compiled_form
from instruct_lit.accel.weight_copies import WeightCopy
from tests.fixtures.loss_inputs import made


@pytest.fixture(params=["in blocks", "at once"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The softmax as on a CPU, and as on a GPU."""
    monkeypatch.setattr(module, "_at_once", lambda like: request.param == "at once")
    return request.param


def test_gradients_cannot_be_scaled_afterwards() -> None:
    hidden, head, targets, weights = made(5, dtype=torch.float32)
    for copy in (None, WeightCopy(head, head.detach(), torch.empty_like(head))):
        loss = summed_cross_entropy(hidden, head, targets, weights, copy)
        with pytest.raises(AssertionError, match="scale the weights of the loss instead"):
            (loss * 1.5).backward()


@pytest.mark.usefixtures("way")
def test_logits_are_never_stored_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest product of the loss has CHUNK rows, however many positions there are."""
    sizes = []
    multiply = torch.mm

    def watched(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        sizes.append(len(a) * b.shape[1])
        return multiply(a, b, out=out)

    monkeypatch.setattr(torch, "mm", watched)
    monkeypatch.setattr(module, "GPU_CHUNK", module.CHUNK)
    hidden, weight, targets, weights = made(4 * module.CHUNK, v=300)
    summed_cross_entropy(hidden, weight, targets, weights).backward()
    assert max(sizes) <= module.CHUNK * 320  # 300, padded on a GPU


def test_a_gpus_head_is_padded_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of unaligned rows are slow; padding rows have no probability and no gradient."""
    monkeypatch.setattr(module, "_at_once", lambda like: True)
    head = torch.ones(71, 3)
    padded = module._padded_head(head, torch.bfloat16)
    assert padded.shape == (128, 3) and padded.dtype == torch.bfloat16
    assert (padded[:71] == 1).all() and not padded[71:].any()
    assert module._padded_head(torch.ones(128, 3), torch.float32).shape == (128, 3)
    monkeypatch.undo()
    assert module._padded_head(head, torch.bfloat16).shape == (71, 3), "unchanged on a CPU"


def test_only_a_gpus_softmax_is_compiled(way: str) -> None:
    compiled: list[Callable[..., Any]] = []
    hidden, weight, targets, weights = made(5)
    wanted = summed_cross_entropy(hidden, weight, targets, weights)
    compiler = lambda function: compiled.append(function) or function  # noqa: E731
    assert summed_cross_entropy(hidden, weight, targets, weights, compiler=compiler) == wanted
    assert compiled == ([module._to_gradient] if way == "at once" else [])


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_a_gpu_gives_the_same_loss_and_gradients(compiled: bool) -> None:
    hidden, weight, targets, weights = made(module.GPU_CHUNK + 100, v=517, dtype=torch.float32)
    results = []
    for device in ("cpu", "cuda"):
        ours = [x.detach().to(device).requires_grad_() for x in (hidden, weight)]
        loss = summed_cross_entropy(
            *ours, targets.to(device), weights.to(device), compiler=compiled_form if compiled else None
        )
        results.append([loss.cpu(), *(g.cpu() for g in torch.autograd.grad(loss, ours))])
    for found, wanted in zip(*results, strict=True):
        assert (found - wanted).norm() / wanted.norm() < 1e-5
