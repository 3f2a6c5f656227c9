"""Packed documents, with and without a shared prefix, are each document alone: outputs and gradients."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from instruct_lit.accel import attention_products as products
from instruct_lit.accel import attention_varlen as varlen
from instruct_lit.accel.attention_varlen import Sequences, VarlenDocuments
from instruct_lit.core.model.attention import CausalRows, PackedDocuments

H, D = 3, 8


@pytest.fixture(params=["fused kernel", "products"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to attend, whatever the precision."""
    monkeypatch.setattr(products, "suits", lambda q, n_keys: request.param == "products")
    monkeypatch.setattr(products, "suits_rows", lambda q: request.param == "products")


def random(n: int, seed: int) -> Tensor:
    return torch.randn(n, 3, H, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def alone(qkv: Tensor) -> Tensor:
    """Causal attention of one document, written out."""
    q, k, v = (x.transpose(0, 1) for x in qkv.unbind(1))
    scores = q @ k.transpose(-2, -1) / D**0.5
    visible = torch.ones(len(qkv), len(qkv), dtype=torch.bool).tril()
    return (scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v).transpose(0, 1)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "lengths", [[5], [4, 7, 1, 6], [1, 1, 1], [30, 2, 17, 3, 3], [90, 60, 70, 200, 5, 40, 300], [7, 320]]
)
@pytest.mark.parametrize("n_prefix", [0, 1, 9])
def test_packed_documents_are_the_documents_alone(lengths: list[int], n_prefix: int) -> None:
    packed = random(n_prefix + sum(lengths), 0).requires_grad_()
    out = PackedDocuments(lengths, n_prefix).attend(0, *packed.unbind(1), 0.0)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((out * weight).sum(), packed)

    reference = packed.detach().clone().requires_grad_()
    prefix, total, start = reference[:n_prefix], torch.zeros((), dtype=torch.float64), n_prefix
    if n_prefix:
        expected = alone(prefix)
        torch.testing.assert_close(out[:n_prefix], expected, rtol=0, atol=1e-12)
        total = total + (expected * weight[:n_prefix]).sum()
    for length in lengths:
        own = slice(start, start + length)
        expected = alone(torch.cat((prefix, reference[own])))[n_prefix:]
        torch.testing.assert_close(out[own], expected, rtol=0, atol=1e-12)
        total = total + (expected * weight[own]).sum()
        start += length
    (wanted,) = torch.autograd.grad(total, reference)
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)


def test_documents_ask_in_groups_of_few_shapes() -> None:
    """Short ones together, a long one in pieces, and what a group needs more to have such a shape lies behind its end."""
    lengths, n_prefix = [30, 41, 97, 1, 60, 50, 256, 257, 600, 7, 320], 24
    packed = PackedDocuments(lengths, n_prefix)
    q, k, v = random(packed.n_tokens, 0).unbind(1)
    packed.attend(0, q, k, v, 0.0)
    assert packed._groups is not None
    cuts = [(group.start, group.end, group.first_key, group.n_prefix) for group in packed._groups]
    assert cuts == [
        (0, 192, 0, 0),  # the prefix and three documents
        (192, 303, 192, 24),  # three documents
        (303, 559, 303, 24),
        (559, 719, 559, 24), (719, 816, 559, 24),
        (816, 1040, 816, 24), (1040, 1264, 816, 24), (1264, 1416, 816, 24),
        (1416, 1423, 1416, 24),
        (1423, 1583, 1423, 24), (1583, 1743, 1423, 24),
    ]  # fmt: skip
    assert [tuple(group.bias.shape) for group in packed._groups] == [
        (192, 192), (128, 160), (256, 288), (160, 192), (128, 288), (224, 256), (224, 480), (160, 640), (32, 32),
        (160, 192), (160, 352),
    ]  # fmt: skip
    padded = products.laid_out(q.transpose(0, 1), packed._groups)
    assert padded.shape == (H, 1743 + 8, D) and not padded[:, 1743:].any()
    assert torch.equal(padded[:, :1743], q.transpose(0, 1))


def test_trap_10_changing_one_document_leaves_the_others_alone() -> None:
    lengths = [4, 7, 6]
    qkv = random(2 + sum(lengths), 3)
    layout = PackedDocuments(lengths, 2)
    before = layout.attend(0, *qkv.unbind(1), 0.0)
    changed = qkv.clone()
    changed[6:13] += 1.0  # the second document
    after = layout.attend(0, *changed.unbind(1), 0.0)
    assert torch.equal(after[:6], before[:6]) and torch.equal(after[13:], before[13:])
    assert not torch.allclose(after[6:13], before[6:13])


@pytest.mark.usefixtures("way")
def test_rows_are_causal() -> None:
    qkv = torch.stack([random(150, seed) for seed in range(2)]).requires_grad_()  # (B, T, 3, H, D)
    out = CausalRows().attend(0, *qkv.unbind(2), 0.0)
    (gradient,) = torch.autograd.grad(out.square().sum(), qkv)
    for row in range(2):
        document = qkv[row].detach().requires_grad_()
        expected = alone(document)
        torch.testing.assert_close(out[row], expected, rtol=0, atol=1e-12)
        (wanted,) = torch.autograd.grad(expected.square().sum(), document)
        torch.testing.assert_close(gradient[row], wanted, rtol=0, atol=1e-12)


def test_products_are_for_training_on_a_cpu() -> None:
    q = torch.zeros(1)
    assert products.suits(q.bfloat16(), 2048) and products.suits(q, 2048) and not products.suits(q, 2049)
    rows = torch.zeros(2, 3, 512, 8)
    assert products.suits_rows(rows.bfloat16()) and not products.suits_rows(rows)
    assert not products.suits_rows(torch.zeros(2, 3, 513, 8, dtype=torch.bfloat16))
    assert not products.suits(q.half(), 9) and not products.suits(torch.zeros(1, device="meta"), 9)
    with torch.no_grad():
        assert not products.suits(q, 9)


def test_a_layout_takes_the_faster_way() -> None:
    def way_of(out: Tensor) -> set[str]:
        todo, names = [out.grad_fn], set()
        while todo:
            node = todo.pop()
            if node is not None:
                names.add(type(node).__name__)
                todo += [before for before, _ in node.next_functions]
        return names

    for n_tokens, by_products in ((2048, True), (2049, False)):
        qkv = random(n_tokens, 0).float().requires_grad_()
        assert ("_AttendBackward" in way_of(PackedDocuments([n_tokens]).attend(0, *qkv.unbind(1), 0.0))) == by_products
    for dtype, by_products in ((torch.bfloat16, True), (torch.float32, False)):
        qkv = random(40, 0).to(dtype)[None].requires_grad_()
        assert ("_AttendBackward" in way_of(CausalRows().attend(0, *qkv.unbind(2), 0.0))) == by_products


@pytest.mark.parametrize(("length", "kept"), [(200, {D, 224}), (256, {D, 256}), (257, {D, 160}), (600, {D, 224})])
def test_the_weights_of_many_keys_are_not_kept(length: int, kept: set[int]) -> None:
    """Memory grows with the tokens: of the groups of a long document only the first keeps its weights."""
    widths = set()
    qkv = random(length, 7).float().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: widths.add(x.shape[-1]) or x, lambda x: x):
        PackedDocuments([length]).attend(0, *qkv.unbind(1), 0.0)
    assert widths == kept


def test_half_precision_agrees_with_the_exact_attention() -> None:
    exact = random(70, 6)
    for lengths, n_prefix in (([20, 45], 5), ([70], 0)):
        found, wanted = (
            PackedDocuments(lengths, n_prefix).attend(0, *qkv.clone().requires_grad_().unbind(1), 0.0)
            for qkv in (exact.bfloat16(), exact)
        )
        assert type(found.grad_fn.next_functions[0][0]).__name__ == "_AttendBackward"
        torch.testing.assert_close(found.double(), wanted, rtol=0.02, atol=0.03)


@pytest.mark.usefixtures("way")
def test_dropout_drops_weights() -> None:
    """Most of a mean of many draws is the attention without it, in the gradient too."""
    qkv = random(9, 5).requires_grad_()
    layout = PackedDocuments([9])
    torch.manual_seed(0)
    draws = [layout.attend(0, *qkv.unbind(1), 0.5) for _ in range(1000)]
    whole = layout.attend(0, *qkv.unbind(1), 0.0)
    assert not torch.allclose(draws[0], whole)
    mean = torch.stack(draws).mean(0)
    torch.testing.assert_close(mean, whole, rtol=0, atol=0.2)
    (found,), (wanted,) = (torch.autograd.grad(x.sum(), qkv) for x in (mean, whole))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.2)


def test_a_layout_refuses_what_it_was_not_made_for() -> None:
    with pytest.raises(AssertionError, match="a document has at least one token"):
        PackedDocuments([3, 0])
    with pytest.raises(AssertionError, match="5 tokens for a layout of 6"):
        PackedDocuments([6]).attend(0, *random(5, 0).unbind(1), 0.0)


@pytest.mark.parametrize("padding", [[], [3], [5, 2, 0, 0]])
@pytest.mark.parametrize(("lengths", "n_prefix"), [([4, 7, 1, 6], 9), ([3], 2), ([1, 1], 1), ([5, 2], 0)])
def test_the_variable_length_kernel_finds_the_prefix_before_every_document(
    lengths: list[int], n_prefix: int, padding: list[int]
) -> None:
    n_tokens = n_prefix + sum(lengths) + sum(padding)
    x = random(n_tokens, 0)[:, 0].requires_grad_()
    sequences = Sequences(lengths, n_prefix, x.device, padding, longest=20)
    keys = sequences.keys_of(x)
    prefix, *documents = x.split([n_prefix, *lengths, *padding])
    continued = [torch.cat((prefix, document)) for document in documents[: len(lengths)]]
    expected = torch.cat([prefix, *continued, *documents[len(lengths) :]])
    assert torch.equal(keys, expected)
    weight = torch.randn(keys.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, wanted = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (keys, expected))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)
    first = [n_prefix] if n_prefix else []
    assert sequences.cu_queries.diff().tolist() == first + lengths + padding
    assert sequences.cu_keys.diff().tolist() == first + [n_prefix + length for length in lengths] + padding
    assert (sequences.longest_query, sequences.longest_key) == (20, 20 + n_prefix)
    moved = sequences.at(sequences.flat.clone())
    assert torch.equal(moved.keys_of(x), keys) and moved.flat is not sequences.flat


def kernel(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, *, window_size: tuple[int, int]
) -> Tensor:
    """What the GPU's kernel does, written out: a query sees all keys of its sequence up to its own, the last is the last."""
    assert window_size == (-1, 0) and max_q >= cu_q.diff().max() and max_k >= cu_k.diff().max()
    out = torch.full_like(q, torch.nan)  # a token of no sequence would spoil everything
    for a, b, c, d in zip(cu_q[:-1], cu_q[1:], cu_k[:-1], cu_k[1:], strict=True):
        queries, keys, values = (x.transpose(0, 1) for x in (q[a:b], k[c:d], v[c:d]))
        place = torch.arange(d - c - (b - a), d - c)
        hidden = torch.arange(d - c) > place[:, None]
        scores = (queries @ keys.transpose(1, 2) / D**0.5).masked_fill(hidden, -torch.inf)
        out[a:b] = (scores.softmax(-1) @ values).transpose(0, 1)
    return out


@pytest.mark.parametrize("lengths", [[5], [4, 7, 1, 6], [30, 2, 17, 3, 3]])
@pytest.mark.parametrize("n_prefix", [0, 1, 9, 40])
@pytest.mark.parametrize("n_heads", [H, 1])
def test_the_variable_length_kernel_is_asked_for_the_documents_alone(
    lengths: list[int], n_prefix: int, n_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout that a GPU has, with the kernel written out; one head of keys may serve all queries."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    results = []
    for suits in (True, False):
        monkeypatch.setattr(varlen, "suits", lambda q, dropout, suits=suits: suits)
        qkv = random(n_prefix + sum(lengths), 0).requires_grad_()
        q, k, v = qkv.unbind(1)
        out = PackedDocuments(lengths, n_prefix).attend(0, q, k[:, :n_heads], v[:, :n_heads], 0.0)
        (gradient,) = torch.autograd.grad(out.square().sum(), qkv)
        results.append((out, gradient))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_the_variable_length_kernel_takes_neither_dropout_nor_groups_of_heads() -> None:
    q, k, v = random(6, 0).unbind(1)
    layout = VarlenDocuments(Sequences([2, 4], 0, q.device))
    for keys, dropout in ((k, 0.1), (k[:, :1], 0.0)):
        with pytest.raises(AssertionError, match="the kernel knows neither dropout nor groups of heads"):
            layout.attend(0, q, keys, v, dropout)


def test_the_variable_length_kernel_is_for_gpus_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not varlen.suits(torch.zeros(4, 3, 8, dtype=torch.bfloat16), 0.0)
    with FakeTensorMode():  # as on a GPU
        q = torch.zeros(4, 3, 8, dtype=torch.bfloat16, device="cuda")
        monkeypatch.setattr(varlen, "_capability", lambda device: (9, 0))
        assert varlen.suits(q, 0.0) and varlen.suits(q.half(), 0.0)
        assert not varlen.suits(q, 0.1) and not varlen.suits(q.float(), 0.0)
        for width in (4, 256, 264):
            wide = torch.zeros(4, 3, width, dtype=torch.bfloat16, device="cuda")
            assert varlen.suits(wide, 0.0) is (width == 256)
        monkeypatch.setattr(varlen, "_capability", lambda device: (8, 0))
        assert varlen.suits(q, 0.0)
        monkeypatch.setattr(varlen, "_capability", lambda device: (7, 5))
        assert not varlen.suits(q.half(), 0.0), "Turing has no such kernel"


def test_the_gradient_of_a_prefix_is_summed_exactly() -> None:
    """In bf16 a sum of 300 ones, one after the other, would stop at 256."""
    x = torch.zeros(1 + 300, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    Sequences([1] * 300, 1, x.device).keys_of(x).sum().backward()
    assert x.grad is not None and x.grad[0].item() == torch.tensor(301.0).bfloat16() and (x.grad[1:] == 1).all()


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [[5], [4, 7, 1, 6], [1, 1, 1], [90, 60, 70, 200, 5, 40, 300], [7, 320]])
@pytest.mark.parametrize("n_prefix", [0, 1, 9, 150])
def test_on_a_gpu_packed_documents_are_the_documents_alone(lengths: list[int], n_prefix: int) -> None:
    exact = random(n_prefix + sum(lengths), 0).bfloat16()
    results = []
    for qkv in (exact.cuda(), exact.double()):
        qkv.requires_grad_()
        out = PackedDocuments(lengths, n_prefix).attend(0, *qkv.unbind(1), 0.0)
        (gradient,) = torch.autograd.grad(out.square().sum(), qkv)
        results.append((out.cpu().double(), gradient.cpu().double()))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0.03, atol=0.03)
        assert (found - wanted).norm() / wanted.norm() < 0.01
