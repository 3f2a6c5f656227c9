"""The undocumented attributes of torch that acceleration uses: a torch without one of them is named here."""

import weakref
from pathlib import Path

import pytest
import torch

from instruct_lit.accel import compat_torch as module


def test_torch_has_what_is_used() -> None:
    assert hasattr(torch, "_softmax_backward_data"), "torch._softmax_backward_data is gone (softmax_backward)"
    for name in ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise"):
        assert hasattr(torch.ops.mkldnn, name), f"torch.ops.mkldnn.{name} is gone"
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        assert hasattr(torch.cpu, name), f"torch.cpu.{name} is gone"
    for name in ("_fused_adamw_", "_foreach_copy_", "_foreach_add_", "_foreach_norm"):
        assert hasattr(torch, name), f"torch.{name} is gone"


def test_a_borrowed_tensor_is_the_same_memory_and_does_not_keep_it() -> None:
    assert hasattr(torch._C, "_construct_storage_from_data_pointer"), "gone from torch._C (borrowed)"
    tensor = torch.arange(12.0).view(3, 4).t()[1:]
    borrowed = module.borrowed(tensor)
    tensor[0, 0] = 7
    assert borrowed.stride() == (1, 4) and torch.equal(borrowed, tensor)
    freed = weakref.ref(tensor.untyped_storage())
    del tensor
    assert freed() is None


def test_the_gradient_of_softmax_is_autograds() -> None:
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    weights, grad = scores.softmax(-1), torch.arange(15.0, dtype=torch.float64).view(3, 5)
    (expected,) = torch.autograd.grad(weights, scores, grad)
    torch.testing.assert_close(module.softmax_backward(grad, weights.detach()), expected)


@pytest.mark.parametrize("gelu", [False, True])
def test_a_packed_product_is_the_product(gelu: bool) -> None:
    if not module.has_packed_products():
        pytest.skip("this processor has no bf16 products")
    x, weight, bias = torch.randn(3, 16).bfloat16(), torch.randn(8, 16).bfloat16(), torch.randn(8).bfloat16()
    expected = torch.nn.functional.linear(x.float(), weight.float(), bias.float())
    expected = torch.nn.functional.gelu(expected, approximate="tanh") if gelu else expected
    found = module.packed_linear(x, module.packed_weight(weight, 64), bias, gelu)
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)


def test_bf16_needs_a_matrix_library_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.has_bf16_products() == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not module.has_bf16_products() and not module.has_packed_products()


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the system does not list the processor's instructions")
def test_tiles_are_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.has_amx_tiles() == ("amx_tile" in Path("/proc/cpuinfo").read_text().split())
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert not module.has_amx_tiles(), "a torch without the attribute"


def test_whether_something_waits_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = ["warn"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def fail(message: str) -> None:
        assert modes[-1] == "error", "as torch then refuses to wait"
        raise RuntimeError(message)

    assert module.waits_for_gpu(lambda: fail("called a synchronizing CUDA operation"))
    assert not module.waits_for_gpu(lambda: torch.ones(2).sum())
    with pytest.raises(RuntimeError, match="another"):
        module.waits_for_gpu(lambda: fail("another error"))
    assert modes == ["warn", *["error", "warn"] * 3]


def test_one_call_for_many_tensors() -> None:
    targets, sources = [torch.zeros(2), torch.zeros(3)], [torch.ones(2), torch.full((3,), 2.0)]
    module.copy_all(targets, sources)
    module.add_all(targets, sources)
    assert [t.tolist() for t in targets] == [[2, 2], [4, 4, 4]]
    torch.testing.assert_close(module.norm_of_each(targets), torch.tensor([8**0.5, 48**0.5]))


def test_the_update_of_a_piece_is_adamws() -> None:
    weight = torch.nn.Parameter(torch.arange(6.0))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.2, fused=True)
    weight.grad, mine = torch.ones(6), weight.detach().clone()
    moments = torch.zeros(6), torch.zeros(6)
    module.fused_adamw(
        [mine], [torch.ones(6)], *([m] for m in moments), [torch.ones(())], None, optimizer.param_groups[0]
    )
    optimizer.step()
    assert torch.equal(mine, weight.detach())


def test_tensors_without_values_are_counted() -> None:
    live = module.LiveTensors()
    with module.no_values(), live:
        x = torch.ones(2**40, dtype=torch.bfloat16)
        assert x.sum().item() == 0 and live.now >= 2**41
        del x
        with module.values():
            assert torch.ones(2).sum().item() == 2
    assert live.now == 0 and live.peak >= 2**41, "torch's fake tensors, or the life of their storages, have changed"
