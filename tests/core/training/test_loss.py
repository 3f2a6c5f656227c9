"""The masked cross-entropy against its definition, by hand and by torch."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from instruct_lit.core.model.causal import capped, token_losses
from instruct_lit.core.model.gpt import GPT
from instruct_lit.core.training import loss as module
from instruct_lit.core.training.loss import summed_cross_entropy
from tests.fixtures.loss_inputs import made


@pytest.fixture(params=["plain", "accelerated in blocks", "accelerated at once"])
def summed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., torch.Tensor]:
    """The plain form, and the accelerated one with the softmax as on a CPU and as on a GPU."""
    if request.param == "plain":
        return summed_cross_entropy
    accelerated = pytest.importorskip("instruct_lit.accel.cross_entropy")
    monkeypatch.setattr(accelerated, "_at_once", lambda like: request.param.endswith("at once"))
    return accelerated.summed_cross_entropy


def test_trap_6_three_tokens_by_hand() -> None:
    """Two classes with logits (0, x): -log p(0) = log(1 + e^x), -log p(1) = log(1 + e^-x)."""
    hidden = torch.tensor([[0.0], [1.0], [2.0]])
    head = torch.tensor([[0.0], [1.0]])
    loss = summed_cross_entropy(hidden, head, torch.tensor([0, 1, 0]), torch.ones(3))
    assert loss.item() == pytest.approx(math.log(2) + math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2)), rel=1e-6)


@pytest.mark.parametrize(
    ("m", "dft", "cap"),
    [
        (1, False, None),
        (5, True, 3.0),
        (module.CHUNK + 3, False, 2.0),
        (module.CHUNK + 3, True, None),
        (2 * module.CHUNK, False, None),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradients_are_torchs(
    summed: Callable[..., torch.Tensor], m: int, dft: bool, cap: float | None, dtype: torch.dtype
) -> None:
    hidden, weight, targets, weights = made(m, dtype=dtype)
    loss = summed(hidden, weight, targets, weights * 0.25, dft=dft, cap=cap)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    exact_hidden, exact_weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    logits = exact_hidden @ exact_weight.t()
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    losses = F.cross_entropy(logits, targets, reduction="none")
    p_target = torch.exp(-losses).detach() if dft else 1.0
    expected = (losses * p_target * weights * 0.25).sum()
    wanted = torch.autograd.grad(expected, (exact_hidden, exact_weight))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for found, right in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=1e-4, atol=2e-5)


def test_nothing_supervised_gives_zero_with_zero_gradients(summed: Callable[..., torch.Tensor]) -> None:
    hidden, weight, targets, weights = made(0)
    loss = summed(hidden, weight, targets, weights)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    assert loss.item() == 0 and gradients[0].shape == (0, 16) and not gradients[1].any()


def test_a_frozen_head_or_frozen_states_get_no_gradient(summed: Callable[..., torch.Tensor]) -> None:
    hidden, weight, targets, weights = made(4)
    summed(hidden, weight.detach(), targets, weights).backward()
    assert hidden.grad is not None
    hidden, weight, targets, weights = made(4)
    summed(hidden.detach(), weight, targets, weights).backward()
    assert weight.grad is not None


def test_half_precision_agrees_with_single(summed: Callable[..., torch.Tensor]) -> None:
    hidden, weight, targets, weights = made(40, dtype=torch.float32)
    exact = summed(hidden, weight, targets, weights)
    with torch.autocast("cpu", torch.bfloat16):
        loss = summed(hidden, weight, targets, weights)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=0.02)
    found, wanted = (torch.autograd.grad(x, weight)[0] for x in (loss, exact))
    assert F.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("cap", [None, 2.0])
def test_token_losses_are_torchs_in_evaluation(tiny_model: GPT, cap: float | None) -> None:
    weight = tiny_model.head_weight.detach().mul_(20)
    hidden, _, targets, _ = made(module.CHUNK + 7, *weight.shape, dtype=torch.float32)
    tiny_model.logit_cap = cap
    logits = hidden @ weight.t()
    expected = F.cross_entropy(logits if cap is None else cap * torch.tanh(logits / cap), targets, reduction="none")
    torch.testing.assert_close(token_losses(tiny_model, hidden, targets), expected, rtol=1e-5, atol=1e-5)
    assert token_losses(tiny_model, hidden[:0], targets[:0]).shape == (0,)


def test_half_precision_is_capped_in_single() -> None:
    logits = torch.tensor([25.0, 40.0, 41.0]).bfloat16()
    assert capped(logits, 30.0).dtype == torch.float32 and capped(logits, 30.0).diff().min() > 0


def test_logits_are_never_stored_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest product of the loss has CHUNK rows, in the backward pass too, and no logits are kept between both."""
    sizes, kept = [], []
    multiply = F.linear

    def watched(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        sizes.append(len(a) * len(b))
        return multiply(a, b)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    monkeypatch.setattr(F, "linear", watched)
    hidden, weight, targets, weights = made(4 * module.CHUNK, v=300)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = summed_cross_entropy(hidden, weight, targets, weights)
    loss.backward()
    assert len(sizes) == 8 and max(sizes) == module.CHUNK * 300
    assert max(kept, default=0) < module.CHUNK * 300
