"""The variable-length kernel of GPUs: which rows it reads, and that it computes the documents alone."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from instruct_lit.accel import attention_varlen as varlen
from instruct_lit.accel.attention_varlen import VarlenDocuments
from instruct_lit.core.model.attention import PackedDocuments
from tests.fixtures.attention import D, H, random_qkv


@pytest.mark.parametrize("padding", [[], [3], [5, 2, 0, 0]])
@pytest.mark.parametrize(("lengths", "n_prefix"), [([4, 7, 1, 6], 9), ([3], 2), ([1, 1], 1), ([5, 2], 0)])
def test_the_variable_length_kernel_finds_the_prefix_before_every_document(
    lengths: list[int], n_prefix: int, padding: list[int]
) -> None:
    n_tokens = n_prefix + sum(lengths) + sum(padding)
    x = random_qkv(n_tokens, 0)[:, 0].requires_grad_()
    sequences = VarlenDocuments(lengths, n_prefix, x.device, padding, longest=20)
    keys = sequences.keys_of(x)
    prefix, *documents = x.split([n_prefix, *lengths, *padding])
    continued = [torch.cat((prefix, document)) for document in documents[: len(lengths)]]
    expected = torch.cat([prefix, *continued, *documents[len(lengths) :]])
    assert torch.equal(keys, expected)
    weight = torch.randn(keys.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, expected = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (keys, expected))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    first = [n_prefix] if n_prefix else []
    assert sequences.cu_queries.diff().tolist() == first + lengths + padding
    assert sequences.cu_keys.diff().tolist() == first + [n_prefix + length for length in lengths] + padding
    assert (sequences.longest_query, sequences.longest_key) == (20, 20 + n_prefix)
    moved = sequences.at(sequences.flat.clone())
    assert torch.equal(moved.keys_of(x), keys) and moved.flat is not sequences.flat


def kernel(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, *, window_size: tuple[int, int]
) -> Tensor:
    """What the GPU's kernel does, written out: a query sees the keys of its sequence up to its own, the last is the last.

    Those more than `window_size[0]` before its own are hidden, unless that is -1.
    """
    assert window_size[1] == 0 and max_q >= cu_q.diff().max() and max_k >= cu_k.diff().max()
    out = torch.full_like(q, torch.nan)  # a token of no sequence would spoil everything
    for a, b, c, d in zip(cu_q[:-1], cu_q[1:], cu_k[:-1], cu_k[1:], strict=True):
        queries, keys, values = (x.transpose(0, 1) for x in (q[a:b], k[c:d], v[c:d]))
        place = torch.arange(d - c - (b - a), d - c)
        distance = place[:, None] - torch.arange(d - c)
        hidden = (distance < 0) | ((distance > window_size[0]) & (window_size[0] >= 0))
        scores = (queries @ keys.transpose(1, 2) / D**0.5).masked_fill(hidden, -torch.inf)
        out[a:b] = (scores.softmax(-1) @ values).transpose(0, 1)
    return out


@pytest.mark.parametrize("lengths", [[5], [4, 7, 1, 6], [30, 2, 17, 3, 3]])
@pytest.mark.parametrize("n_prefix", [0, 1, 9, 40])
@pytest.mark.parametrize(("n_heads", "window"), [(H, None), (1, None), (H, 1), (1, 6), (H, 71)])
def test_the_variable_length_kernel_computes_the_documents_alone(
    lengths: list[int], n_prefix: int, n_heads: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout that a GPU has, with the kernel written out; one head of keys may serve all queries."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    results = []
    for suits in (True, False):
        monkeypatch.setattr(varlen, "suits", lambda q, dropout, suits=suits: suits)
        qkv = random_qkv(n_prefix + sum(lengths), 0).requires_grad_()
        q, k, v = qkv.unbind(1)
        out = PackedDocuments(lengths, n_prefix).attend(0, q, k[:, :n_heads], v[:, :n_heads], 0.0, window)
        (gradient,) = torch.autograd.grad(out.square().sum(), qkv)
        results.append((out, gradient))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_variable_length_kernel_does_not_support_dropout() -> None:
    q, k, v = random_qkv(6, 0).unbind(1)
    layout = VarlenDocuments([2, 4], 0, q.device)
    with pytest.raises(AssertionError, match="the kernel does not support dropout"):
        layout.attend(0, q, k, v, 0.1)


def test_heads_of_keys_reach_the_kernel_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.11 has no argument for it; later versions must be asked to share heads among groups of queries."""
    q, k, v = random_qkv(6, 0).unbind(1)
    seen: list[tuple[int, int, dict]] = []

    def old(q: Tensor, k: Tensor, *rest: object, window_size: tuple[int, int]) -> Tensor:
        seen.append((q.shape[1], k.shape[1], {}))
        return q

    def new(q: Tensor, k: Tensor, *rest: object, window_size: tuple[int, int], enable_gqa: bool = False) -> Tensor:
        seen.append((q.shape[1], k.shape[1], {"enable_gqa": enable_gqa}))
        return q

    for function in (old, new):
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", function)
        for heads in (H, 1):
            VarlenDocuments([2, 4], 0, q.device).attend(0, q, k[:, :heads], v[:, :heads], 0.0)
    assert seen == [(H, H, {}), (H, 1, {}), (H, H, {"enable_gqa": False}), (H, 1, {"enable_gqa": True})]


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
    VarlenDocuments([1] * 300, 1, x.device).keys_of(x).sum().backward()
    assert x.grad is not None and x.grad[0].item() == torch.tensor(301.0).bfloat16() and (x.grad[1:] == 1).all()


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [[5], [4, 7, 1, 6], [1, 1, 1], [90, 60, 70, 200, 5, 40, 300], [7, 320]])
@pytest.mark.parametrize("n_prefix", [0, 1, 9, 150])
@pytest.mark.parametrize("window", [None, 1, 60])
def test_on_a_gpu_packed_documents_are_the_documents_alone(
    lengths: list[int], n_prefix: int, window: int | None
) -> None:
    exact = random_qkv(n_prefix + sum(lengths), 0).bfloat16()
    results = []
    for qkv in (exact.cuda(), exact.double()):
        qkv.requires_grad_()
        out = PackedDocuments(lengths, n_prefix).attend(0, *qkv.unbind(1), 0.0, window)
        (gradient,) = torch.autograd.grad(out.square().sum(), qkv)
        results.append((out.cpu().double(), gradient.cpu().double()))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0.03, atol=0.03)
        assert (found - expected).norm() / expected.norm() < 0.01
