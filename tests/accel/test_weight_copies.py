"""Working copies and gradient buffers: the numbers of the plain way, in memory that stays."""

import copy
import math

import numpy as np
import pytest
import torch

from instruct_lit.accel import adamw as adamw_module
from instruct_lit.accel import weight_copies as module
from instruct_lit.accel.adamw import AdamW, adamw, mixed_norm
from instruct_lit.accel.cross_entropy import summed_cross_entropy
from instruct_lit.accel.weight_copies import (
    STRIP,
    LowPrecisionWeights,
    Scratch,
    WeightCopy,
    huge_empty,
    transposed,
)
from instruct_lit.core.data.batching import Batch, Collator
from instruct_lit.core.data.encode import EncodedExample
from instruct_lit.core.model.gpt import GPT
from instruct_lit.core.training.loss import layout_of
from instruct_lit.core.training.optimizer import parameter_groups

DTYPES = [torch.bfloat16, torch.float32]


@pytest.fixture
def batches() -> list[Batch]:
    random = np.random.default_rng(1)
    collator = Collator(50256, np.ones(50257, dtype=np.int64), "packed", shared_prefix=True, pad_to_multiple_of=16)
    found = []
    for _ in range(3):
        documents = []
        for index in range(4):
            ids = np.concatenate([[5, 6, 7], random.integers(0, 500, random.integers(4, 20))])
            documents.append(EncodedExample(index, ids, np.arange(len(ids)) > 4))
        found.append(collator(documents))
    return found


def backward(model: GPT, batch: Batch, half: bool, copies: LowPrecisionWeights | None = None) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        states = model.hidden_states(batch.input_ids, batch.position_ids, layout_of(batch), batch.loss_index)
        head = None if copies is None else copies.of[id(model.head_weight)]
        weights = batch.loss_weights / batch.n_supervised
        loss = summed_cross_entropy(states, model.head_weight, batch.targets, weights, head)
    loss.backward()
    return loss.detach()


def optimizer_of(model: GPT) -> AdamW:
    return adamw(parameter_groups(model.named_parameters(), 0.1), lr=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_gradients_and_updates_are_those_of_the_plain_way(
    base: GPT, batches: list[Batch], dtype: torch.dtype
) -> None:
    half = dtype == torch.bfloat16
    plain, fast = copy.deepcopy(base).train(), copy.deepcopy(base).train()
    copies = LowPrecisionWeights(fast, fast.head_weight, dtype, dtype).attach()
    optimizers = [optimizer_of(plain), optimizer_of(fast)]
    optimizers[1].copies = copies
    for batch in batches:
        losses = backward(plain, batch, half), backward(fast, batch, half, copies)
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-3 if half else 1e-6, atol=0)
        for (name, p), q in zip(plain.named_parameters(), fast.parameters(), strict=True):
            assert p.grad is not None and q.grad is not None
            error = (q.grad.to_dense().float() - p.grad.to_dense()).norm() / p.grad.to_dense().norm()
            assert error < (0.02 if half else 1e-6), f"{name}: {error:.1e}"
            if id(q) in copies.of:
                assert q.grad.dtype == dtype and q.grad.data_ptr() == copies.of[id(q)].gradient.data_ptr()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for (name, p), q in zip(plain.named_parameters(), fast.parameters(), strict=True):
        # Adam's first steps are as long as lr whatever the gradient's size, so a rounded small gradient may turn one.
        assert (p - q).abs().mean() < (2e-4 if half else 1e-6), name
        if half and id(q) in copies.of:
            assert torch.equal(copies.of[id(q)].weight, q.bfloat16()), f"{name}: the copy is not of this step"


def test_gradients_of_several_batches_are_summed_in_fp32(base: GPT, batches: list[Batch]) -> None:
    plain, fast = copy.deepcopy(base).train(), copy.deepcopy(base).train()
    copies = LowPrecisionWeights(fast, fast.head_weight, torch.bfloat16, torch.float32).attach()
    for batch in batches:
        backward(plain, batch, True)
        backward(fast, batch, True, copies)
    for (name, p), q in zip(plain.named_parameters(), fast.named_parameters(), strict=True):
        assert q[1].grad is not None and p.grad is not None and q[1].grad.dtype == torch.float32
        assert (q[1].grad - p.grad).norm() / p.grad.norm() < 0.02, name


@pytest.mark.parametrize("dtype", DTYPES)
def test_evaluation_uses_the_parameters_and_detach_gives_the_model_back(
    base: GPT, batches: list[Batch], dtype: torch.dtype
) -> None:
    model = copy.deepcopy(base).train()
    copies = LowPrecisionWeights(model, model.head_weight, dtype, dtype).attach()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)  # as a callback that swaps weights would
        model.eval()
        expected = copy.deepcopy(base).eval()
        for p in expected.parameters():
            p.mul_(2)
        ids = batches[0].input_ids
        assert torch.equal(model(ids), expected(ids))
    copies.detach()
    backward(model.train(), batches[0], False)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("half", [True, False])
def test_the_norm_of_gradients_of_either_precision(half: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(300, 64, generator=generator), torch.randn(7, generator=generator)]
    expected = torch.cat([g.flatten() for g in gradients]).norm()
    if half:
        gradients[0] = gradients[0].bfloat16()
    torch.testing.assert_close(mixed_norm(gradients), expected, rtol=1e-3 if half else 1e-6, atol=0)


def test_a_scale_divides_the_gradients_within_the_step(base: GPT, batches: list[Batch]) -> None:
    models = [copy.deepcopy(base).train() for _ in range(2)]
    optimizers = [optimizer_of(model) for model in models]
    for model in models:
        backward(model, batches[0], False)
    for p in models[0].parameters():
        p.grad = p.grad / 4  # type: ignore[operator]
    optimizers[1].grad_scale = torch.tensor(4.0)
    for optimizer in optimizers:
        optimizer.step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-7)


def test_loaded_moments_are_the_ones_that_are_updated(base: GPT, batches: list[Batch]) -> None:
    """An update's pieces are cut once; a checkpoint that is loaded puts other tensors in the place of the moments."""
    optimizers = []
    for loads in (False, True):
        model = copy.deepcopy(base).train()
        optimizers.append(optimizer := optimizer_of(model))
        optimizer.copies = LowPrecisionWeights(model, model.head_weight, torch.bfloat16, torch.bfloat16).attach()
        for batch in batches:
            optimizer.zero_grad()
            backward(model, batch, True, optimizer.copies)
            optimizer.step()
            if loads:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    for key, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(states[1][key][name], value), f"{name} of parameter {key}"


@pytest.mark.parametrize("rows", [0, 1, STRIP - 1, STRIP, STRIP + 1, 3 * STRIP])
@pytest.mark.parametrize("width", [50, 1024])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tiles", [True, False])
def test_a_transposed_copy_is_the_transpose(
    monkeypatch: pytest.MonkeyPatch, rows: int, width: int, dtype: torch.dtype, tiles: bool
) -> None:
    monkeypatch.setattr(module, "has_amx_tiles", lambda: tiles)
    x = torch.arange(rows * width).view(rows, width).to(dtype)
    found = transposed(x, Scratch())
    assert torch.equal(found, x.t())
    if tiles and dtype == torch.bfloat16:
        assert found.is_contiguous(), "a bf16 product would look for its rows"
    else:
        assert found.data_ptr() == x.data_ptr(), "nothing is copied"


@pytest.mark.parametrize("sizes", [[], [0], [1], [3_000_000], [5, 0, 1_500_000, 7]])
def test_memory_on_huge_pages_is_plain_memory(sizes: list[int]) -> None:
    vectors = huge_empty(sizes, torch.bfloat16)
    for value, vector in enumerate(vectors):
        vector.fill_(value)
    assert [len(vector) for vector in vectors] == sizes
    assert [float(v.sum(dtype=torch.float64)) for v in vectors] == [n * i for i, n in enumerate(sizes)]
    assert all(v.untyped_storage().nbytes() == 2 * len(v) for v in vectors), (
        "a checkpoint would hold the others as well"
    )


@pytest.mark.parametrize("gradient_dtype", [torch.bfloat16, torch.float32])
def test_a_gradient_of_several_products_stays_in_its_buffer(gradient_dtype: torch.dtype) -> None:
    """In half precision the sum is rounded once a product, in single precision each product is."""
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Parameter(torch.zeros(70, 16))
    if gradient_dtype != head.dtype:
        head.grad_dtype = gradient_dtype
    one = WeightCopy(head, head.detach().bfloat16(), torch.full((70, 16), math.nan, dtype=gradient_dtype))
    exact = torch.zeros(70, 16)
    for n in (5, 40, 3):
        rows, x = (torch.randn(n, width, generator=generator).bfloat16() for width in (70, 16))
        product = rows.float().t() @ x.float()
        exact = (exact + product).bfloat16().float() if gradient_dtype == torch.bfloat16 else exact + product.bfloat16()
        one.collect(rows, x)
        assert head.grad is not None and head.grad.data_ptr() == one.gradient.data_ptr()
    # A sum at a tie of two neighbours may be rounded to either.
    assert ((one.gradient.float() - exact).abs() <= 2**-7 * exact.abs() + 1e-6).all()
    assert (one.gradient.float() == exact).float().mean() > 0.98


def test_scratch_memory_is_of_one_place_until_more_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = Scratch()
    small = [scratch.take("x", (8, 1000), torch.bfloat16) for _ in range(2)]
    assert small[0].data_ptr() != small[1].data_ptr(), "what the system keeps is left to it"
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    first = scratch.take("x", (8, 1000), torch.bfloat16)
    assert first.shape == (8, 1000) and first.dtype == torch.bfloat16 and first.is_contiguous()
    assert scratch.take("x", (10, 1000), torch.bfloat16).data_ptr() == first.data_ptr(), "a quarter more fits"
    assert scratch.take("x", (50, 100), torch.float32).data_ptr() == first.data_ptr()
    other = scratch.take("y", (8, 1000), torch.bfloat16).fill_(1)
    larger = scratch.take("x", (11, 1000), torch.bfloat16).fill_(2)
    assert larger.shape == (11, 1000) and (other == 1).all()
    assert scratch.take("x", (11, 1000), torch.bfloat16).data_ptr() == larger.data_ptr()


def test_frozen_matrices_are_rounded_once_for_all_steps(tiny_model: GPT, batches: list[Batch]) -> None:
    """The numbers are those of autocast, which rounds them in every step; a frozen head needs no gradient."""
    losses = []
    for copied in (False, True):
        model = copy.deepcopy(tiny_model).train()
        for name, p in model.named_parameters():
            p.requires_grad_(name.endswith("bias"))
        copies = LowPrecisionWeights(model, model.head_weight, torch.bfloat16, torch.bfloat16) if copied else None
        if copies is not None:
            copies.attach()
            assert len(copies.frozen) == 8 and not copies.linears and len(copies.of) == 1
        losses.append(float(backward(model, batches[0], True, copies)))
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        losses += [float(g.float().norm()) for g in gradients]
        if copies is not None:
            copies.detach()
            assert not any("forward" in vars(module) for module in model.modules())
    assert losses[: len(losses) // 2] == losses[len(losses) // 2 :]


def test_rows_of_a_tied_embedding_are_added_to_the_gradient_of_the_head() -> None:
    """With the numbers of autograd, which makes a whole matrix of them; the row of a padding token is not trained."""
    gradients = []
    for copied in (False, True):
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"table": torch.nn.Embedding(9, 4, padding_idx=2), "head": torch.nn.Linear(4, 9)})
        model["head"].weight = model["table"].weight
        weight = model["table"].weight
        if copied:
            LowPrecisionWeights(model, weight, torch.float32, torch.float32).attach()
        for ids in ([[1, 2, 1], [8, 1, 2]], [[3, 3, 3]]):
            model["head"](model["table"](torch.tensor(ids))).square().sum().backward()
        gradients.append(weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


class LowRank(torch.nn.Module):
    """A low-rank layer with the parts of `instruct_lit.hf.compat_peft`; its own forward pass is peft's."""

    def __init__(self, dropout: torch.nn.Module, bias: bool) -> None:
        super().__init__()
        self.base, self.down = torch.nn.Linear(24, 40, bias=bias), torch.nn.Linear(24, 4, bias=False)
        self.up, self.dropout = torch.nn.Linear(4, 40, bias=False), dropout
        self.base.requires_grad_(False)

    def low_rank_parts(self) -> tuple[torch.nn.Module, ...]:
        return self.base, self.down, self.up, self.dropout, 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.base(x)
        return result + self.up(self.down(self.dropout(x)) * 2.0).to(result.dtype)


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_low_rank_layer_is_one_function(half: bool, bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = LowRank(torch.nn.Identity(), bias), torch.randn(3, 7, 24)
    dtype, found = torch.bfloat16 if half else torch.float32, []
    for copied in (False, True):
        copies = LowPrecisionWeights(layer, layer.base.weight, dtype, dtype) if copied else None
        assert copies is None or copies.attach().low_rank == [layer]
        own = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = layer(own)
        assert (type(out.grad_fn).__name__ == "_LowRankBackward") == copied
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        (out.float() * weight).sum().backward()
        found.append([out.detach(), own.grad, *(m.weight.grad.float() for m in (layer.down, layer.up))])
        layer.zero_grad()
    for a, b in zip(found[1], found[0], strict=True):
        assert (a - b).norm() / b.norm() < (0.01 if half else 1e-6)
    layer.eval()
    assert type(layer(x).grad_fn).__name__ != "_LowRankBackward", "not in evaluation mode"
    copies.detach()
    assert not any("forward" in vars(module) for module in layer.modules())


def test_a_low_rank_layer_with_dropout_or_a_trained_base_stays_as_it_is() -> None:
    for layer in (LowRank(torch.nn.Dropout(0.5), False), LowRank(torch.nn.Identity(), False)):
        layer.base.requires_grad_(isinstance(layer.dropout, torch.nn.Identity))
        LowPrecisionWeights(layer, layer.up.weight, torch.float32, torch.float32).attach()
        assert type(layer(torch.randn(3, 24)).grad_fn).__name__ != "_LowRankBackward"


def test_small_parameters_are_updated_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(*(torch.nn.Linear(8, 8, bias=False) for _ in range(20)))
    plain, calls = copy.deepcopy(layers), []
    original = adamw_module.fused_adamw
    monkeypatch.setattr(adamw_module, "fused_adamw", lambda *given: calls.append(len(given[0])) or original(*given))
    for model in (plain, layers):
        model(torch.ones(4, 8)).square().sum().backward()
    copies = LowPrecisionWeights(layers, layers[0].weight, torch.bfloat16, torch.float32)
    gradients = [p.grad for p in layers.parameters()]
    copies.attach()
    for p, gradient in zip(layers.parameters(), gradients, strict=True):
        p.grad = copies.of[id(p)].gradient.copy_(gradient)
    for model, own in ((plain, None), (layers, copies)):
        optimizer = adamw([{"params": list(model.parameters()), "weight_decay": 0.1}], lr=1e-3)
        optimizer.copies = own
        optimizer.step()
    assert calls == [20]
    for p, q in zip(plain.parameters(), layers.parameters(), strict=True):
        assert torch.equal(p, q) and torch.equal(copies.of[id(q)].weight, q.bfloat16())
