"""A replaced MLP computes what the model's own computes, and keeps less."""

import pytest
import torch
from torch import Tensor, nn

from instruct_lit.accel.forwards import ReplacedForwards
from instruct_lit.accel.gated_mlp import gated_mlps


class MLP(nn.Module):
    """As Llama (SiLU), Gemma (GELU) and others write it."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(16, 48, bias=False), nn.Linear(16, 48)
        self.down_proj, self.act_fn = nn.Linear(48, 16, bias=False), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Clamped(MLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x).clamp(-0.1, 0.1))


class Limited(MLP):
    """As of gpt-oss and others: only large numbers reach the limit."""

    limit = 7.0

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x).clamp(max=self.limit), self.up_proj(x).clamp(-self.limit, self.limit)
        return self.down_proj(self.act_fn(gate) * up)


class Weighted(MLP):
    def forward(self, x: Tensor, weight: float = 1.0) -> Tensor:  # type: ignore[override]
        return weight * super().forward(x)


def results(mlp: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor], int]:
    """The output, all gradients, and the number of values kept for them beside the weights."""
    x, kept = x.clone().requires_grad_(), {}
    weights = {p.data_ptr() for p in mlp.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.update({t.data_ptr(): t.numel()}) or t, lambda t: t):
        out = mlp(x)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((out * weight).sum(), (x, *mlp.parameters()))
    return out, list(gradients), sum(n for place, n in kept.items() if place not in weights)


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.GELU(approximate="tanh")])
def test_the_activation_is_not_kept(activation: nn.Module) -> None:
    torch.manual_seed(0)
    model, x = nn.ModuleDict({"mlp": MLP(activation)}), torch.randn(5, 7, 16)
    expected = results(model["mlp"], x)
    mlps = ReplacedForwards(gated_mlps(model)).attach()
    assert list(mlps.forwards) == [model["mlp"]]
    found = results(model["mlp"], x)
    assert torch.equal(found[0], expected[0])
    for a, b in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert (expected[2], found[2]) == (35 * (16 + 4 * 48), 35 * (16 + 3 * 48))
    model.eval()
    assert type(model["mlp"](x).grad_fn.next_functions[0][0]).__name__ != "_GatedBackward"
    mlps.detach()
    assert "forward" not in vars(model["mlp"])


def test_to_try_it_draws_nothing_and_leaves_the_mode() -> None:
    mlp = MLP(nn.SiLU())
    mlp.up_proj = nn.Sequential(nn.Dropout(0.5), mlp.up_proj)
    state = torch.get_rng_state()
    assert list(gated_mlps(mlp)) == [mlp] and mlp.up_proj[0].training
    assert torch.equal(torch.get_rng_state(), state)


def test_an_mlp_that_computes_something_else_stays() -> None:
    torch.manual_seed(0)
    replaced = MLP(nn.SiLU())
    replaced.forward = lambda x: x  # as another library's kernels
    assert not gated_mlps(nn.ModuleList([Clamped(nn.SiLU()), MLP(nn.PReLU()), replaced]))
    assert not gated_mlps(nn.ModuleList([Limited(nn.SiLU()), Weighted(nn.SiLU())]))
    layers = nn.ModuleList([Limited(nn.SiLU()), Limited(nn.SiLU())])  # of one class, as the layers of Gemma 3n
    layers[1].limit = float("inf")
    assert list(gated_mlps(layers)) == [layers[1]]
