"""A replaced norm computes what the model's own computes, and saves less."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instruct_lit.accel.forwards import ReplacedForwards
from instruct_lit.accel.rms_norm import rms_norm, rms_norms


class LlamaRMSNorm(nn.Module):
    """As models of transformers write it; `offset` is 1 in Gemma."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.weight, self.variance_epsilon, self.offset = nn.Parameter(torch.randn(48) - offset), 1e-5, offset

    def forward(self, x: Tensor) -> Tensor:
        normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.weight + self.offset) * normed.to(x.dtype)


class CentredRMSNorm(LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(-1, keepdim=True))


class BiasedRMSNorm(LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1


class WeightlessRMSNorm(LlamaRMSNorm):
    """As Falcon Mamba's, with a weight of another size that it does not read."""

    def __init__(self) -> None:
        super().__init__()
        del self.weight
        self.weight = nn.Buffer(torch.ones(48))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:])


class GatedRMSNorm(LlamaRMSNorm):
    """As Mamba's; in Qwen 3.5 the gate is required."""

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(x if gate is None else x * F.silu(gate))


def results(norm: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, the gradients of input and weight, and the number of bytes saved between them."""
    x, saved = x.clone().requires_grad_(), {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.update({t.data_ptr(): t.nbytes}) or t, lambda t: t):
        out = norm(x)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((out * weight).sum(), (x, norm.weight))
    return [out, *gradients, torch.tensor(sum(saved.values()))]


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norm_of_a_llama_and_of_a_gemma_is_replaced(offset: float) -> None:
    torch.manual_seed(0)
    model, x = nn.ModuleDict({"norm": LlamaRMSNorm(offset)}), 3 * torch.randn(2, 7, 48)
    expected = results(model["norm"], x)
    norms = ReplacedForwards(rms_norms(model)).attach()
    (forward,) = norms.forwards.values()
    assert forward.args[2] == offset
    found = results(model["norm"], x)
    for a, b in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert found[3] < 0.6 * expected[3], "the normed input was saved"
    half = x.bfloat16()
    assert torch.equal(model["norm"](half), LlamaRMSNorm.forward(model["norm"], half)), "only in the weight's dtype"
    model.eval()
    plain = LlamaRMSNorm.forward(model["norm"], x)
    assert torch.equal(model["norm"](x), plain), "only in training"
    of_decoding = ReplacedForwards(rms_norms(model, training=False)).attach()
    assert not torch.equal(model["norm"](x), plain)
    torch.testing.assert_close(model["norm"](x), plain)
    assert torch.equal(results(model.train()["norm"], x)[0], found[0]), "the other mode's stays"
    of_decoding.detach()
    assert torch.equal(model.eval()["norm"](x), plain)
    assert torch.equal(results(model.train()["norm"], x)[0], found[0])
    norms.detach()
    assert "forward" not in vars(model["norm"])


def test_frozen_norms_in_bf16_are_computed_in_fp32_and_rounded_once() -> None:
    torch.manual_seed(0)
    exact = LlamaRMSNorm()
    model = nn.ModuleDict({"norm": LlamaRMSNorm()}).bfloat16()
    model["norm"].weight.data.copy_(exact.weight)
    x = 3 * torch.randn(2, 7, 48).bfloat16()
    expected, theirs = results(exact, x.float()), results(model["norm"], x)
    ReplacedForwards(rms_norms(model)).attach()
    found = results(model["norm"], x)
    assert found[0].dtype == found[1].dtype == torch.bfloat16
    for a, b, c in zip(found[:3], expected[:3], theirs[:3], strict=True):
        assert (a.float() - b).norm() <= (c.float() - b).norm() * 1.05, "no less exact than the model's own"
    assert found[3] < 0.5 * theirs[3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [CentredRMSNorm, BiasedRMSNorm, GatedRMSNorm, WeightlessRMSNorm])
def test_a_norm_that_computes_something_else_stays(kind: type, dtype: torch.dtype) -> None:
    assert not rms_norms(nn.ModuleDict({"norm": kind()}).to(dtype))
    assert not rms_norms(nn.ModuleDict({"norm": LlamaRMSNorm(1.0).bfloat16()})), "1 + w would be rounded"


def test_it_is_the_norm_of_torch_which_a_gpu_uses() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, 48), torch.randn(48)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5, 1.0), F.rms_norm(x, (48,), weight + 1.0, 1e-5))


def test_gradients_of_many_sizes_agree_with_differences() -> None:
    torch.manual_seed(0)
    x = (torch.randn(3, 8, dtype=torch.float64) * 10.0 ** torch.tensor([[-3], [0], [3]])).requires_grad_()
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-5, 1.0), (x, weight), eps=1e-7, rtol=1e-4, atol=1e-4)
