"""Products of one input share its rounded form."""

import weakref

import torch
from torch import Tensor, nn

from instruct_lit.accel.forwards import ReplacedForwards
from instruct_lit.accel.shared_casts import Casts, shared_casts


class Projections(nn.Module):
    """Queries, keys and values of one input, and a product of another."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.5
        return self.o((self.q(x) * self.k(x)).float() + self.v(x))


def n_casts(out: Tensor) -> int:
    """The number of conversions of activations in the graph of `out`."""
    todo, seen, n = [out.grad_fn], set(), 0
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leads_to = [before for before, _ in node.next_functions]
        of_parameter = any(type(before).__name__ == "AccumulateGrad" for before in leads_to if before is not None)
        n += type(node).__name__ == "ToCopyBackward0" and not of_parameter
        todo += leads_to
    return n


def test_three_products_of_one_input_round_it_once() -> None:
    torch.manual_seed(0)
    model, x, found = Projections(), torch.randn(5, 16), []
    for shares in (False, True):
        casts = ReplacedForwards(shared_casts(model)).attach() if shares else None
        model.zero_grad()
        own = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = model(own)
        out.float().square().sum().backward()
        found.append((n_casts(out), out.detach(), own.grad, [p.grad.clone() for p in model.parameters()]))
        if casts is not None:
            casts.detach()
    assert (found[0][0], found[1][0]) == (5, 3)  # of x, of q·k to fp32, and of the last input
    assert torch.equal(found[0][1], found[1][1])
    torch.testing.assert_close(found[1][2], found[0][2], rtol=0.02, atol=0.02)
    assert all(torch.equal(a, b) for a, b in zip(found[1][3], found[0][3], strict=True))
    assert not any("forward" in vars(module) for module in model.modules())


def test_nothing_of_a_forward_pass_without_a_backward_pass_is_kept() -> None:
    """As the one that finds out whether a GPU is waited for."""
    model, kept = Projections(), []
    ReplacedForwards(shared_casts(model)).attach()
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(weakref.ref(x)), x)[1], lambda x: x),
    ):
        model(torch.randn(5, 16))
    assert len(kept) > 5 and all(x() is None or isinstance(x(), nn.Parameter) for x in kept)


def test_outside_of_autocast_and_training_nothing_is_rounded() -> None:
    model, x = Projections(), torch.randn(5, 16)
    expected = model(x)
    ReplacedForwards(shared_casts(model)).attach()
    assert torch.equal(model(x), expected) and model(x).dtype == torch.float32
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x), model(x.clone()))


def test_an_input_is_rounded_anew_once_it_has_changed() -> None:
    casts, x = Casts(), torch.randn(5)
    first = casts(x, torch.bfloat16)
    assert casts(x, torch.bfloat16) is first and casts(first, torch.bfloat16) is first
    assert casts(x, torch.float16).dtype == torch.float16
    second = casts(x, torch.bfloat16)
    x.add_(1)
    assert torch.equal(casts(x, torch.bfloat16), x.bfloat16()) and not torch.equal(second, x.bfloat16())
    x.requires_grad_()
    with torch.no_grad():
        assert not casts(x, torch.bfloat16).requires_grad
    assert casts(x, torch.bfloat16).requires_grad, "what was rounded without a gradient has none"


@torch.inference_mode()
def test_an_inference_tensor_which_has_no_version_is_rounded_once() -> None:
    casts, x = Casts(), torch.randn(3, 4)
    rounded = casts(x, torch.bfloat16)
    assert casts(x, torch.bfloat16) is rounded and torch.equal(rounded, x.bfloat16())
    assert torch.equal(casts(x + 1, torch.bfloat16), (x + 1).bfloat16())


def test_the_last_input_is_not_kept_alive() -> None:
    casts, x = Casts(), torch.randn(5)
    casts(x, torch.bfloat16)
    place = x.data_ptr()
    del x
    other = torch.randn(5)
    assert torch.equal(casts(other, torch.bfloat16), other.bfloat16()), f"{other.data_ptr()} after {place}"
