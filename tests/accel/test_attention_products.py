"""Attention as matrix products, and in groups by torch's kernel, is the plain attention of the core."""

import pytest
import torch
from torch import Tensor

from instruct_lit.accel import attention_products as products
from instruct_lit.accel.attention_groups import Group, contiguous_rows, n_rows_for
from instruct_lit.core.model.attention import CausalRows, PackedDocuments
from tests.fixtures.attention import (
    LENGTHS,
    D,
    H,
    check_documents,
    check_dropout,
    check_independence,
    check_rows,
    random_qkv,
)


@pytest.fixture(params=["fused kernel", "products"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both implementations, whatever the precision."""
    monkeypatch.setattr(products, "suits", lambda q, n_keys: request.param == "products")
    monkeypatch.setattr(products, "suits_rows", lambda q: request.param == "products")


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("n_prefix", [0, 1, 9])
def test_packed_documents_are_the_documents_alone(lengths: list[int], n_prefix: int) -> None:
    check_documents(lengths, n_prefix)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("window", [1, 40, 200, 399])
@pytest.mark.parametrize(
    ("lengths", "n_prefix"), [(LENGTHS[4], 0), (LENGTHS[4], 100), ([7, 320], 1), ([5], 300), ([300, 7, 601, 290], 0)]
)
def test_layers_with_a_window_see_the_last_tokens_of_a_document(lengths: list[int], n_prefix: int, window: int) -> None:
    check_documents(lengths, n_prefix, window)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("window", [None, 1, 130])
def test_rows_are_causal(window: int | None) -> None:
    check_rows(window)


@pytest.mark.usefixtures("kernel")
def test_trap_10_changing_one_document_leaves_the_others_unchanged() -> None:
    check_independence()


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("in_rows", [False, True])
def test_query_heads_that_share_keys_see_what_repeated_keys_show(in_rows: bool) -> None:
    """Three query heads for each of two heads of keys; a row longer than a group, documents behind a prefix."""
    shape = (2, 150) if in_rows else (9 + 40 + 61 + 300,)
    layout = CausalRows() if in_rows else PackedDocuments([40, 61, 300], 9)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(*shape, n, D, generator=generator, dtype=torch.float64, requires_grad=True) for n in (6, 2, 2)
    )
    found = layout.attend(0, q, k, v, 0.0)
    expected = layout.attend(0, q, k.repeat_interleave(3, -2), v.repeat_interleave(3, -2), 0.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weight = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("kernel")
def test_dropout_drops_weights() -> None:
    check_dropout()


def test_documents_form_groups_of_few_shapes() -> None:
    """Short ones together, long ones in pieces; the surplus of a group lies behind its end."""
    lengths, n_prefix = [30, 41, 97, 1, 60, 50, 256, 257, 600, 7, 320], 24
    packed = PackedDocuments(lengths, n_prefix)
    q, k, v = random_qkv(packed.n_tokens, 0).unbind(1)
    packed.attend(0, q, k, v, 0.0)
    groups: list[Group] = packed.kernel_state["groups 1 None"]
    cuts = [(group.start, group.end, group.first_key, group.n_prefix) for group in groups]
    assert cuts == [
        (0, 192, 0, 0),  # the prefix and three documents
        (192, 303, 192, 24),  # three documents
        (303, 559, 303, 24),
        (559, 719, 559, 24), (719, 816, 559, 24),
        (816, 1040, 816, 24), (1040, 1264, 816, 24), (1264, 1416, 816, 24),
        (1416, 1423, 1416, 24),
        (1423, 1583, 1423, 24), (1583, 1743, 1423, 24),
    ]  # fmt: skip
    assert [tuple(group.bias.shape) for group in groups] == [
        (192, 192), (128, 160), (256, 288), (160, 192), (128, 288), (224, 256), (224, 480), (160, 640), (32, 32),
        (160, 192), (160, 352),
    ]  # fmt: skip
    rows = contiguous_rows(q.transpose(0, 1)[None], n_rows_for(1743, groups))
    assert rows.shape == (1, H, 1743 + 8, D) and not rows[:, :, 1743:].any()
    assert torch.equal(rows[0, :, :1743], q.transpose(0, 1))


def test_products_are_for_training_on_a_cpu() -> None:
    q = torch.zeros(1)
    assert products.suits(q.bfloat16(), 2048) and products.suits(q, 2048) and not products.suits(q, 2049)
    rows = torch.zeros(2, 3, 512, 8)
    assert products.suits_rows(rows.bfloat16()) and not products.suits_rows(rows)
    assert not products.suits_rows(torch.zeros(2, 3, 513, 8, dtype=torch.bfloat16))
    assert not products.suits(q.half(), 9) and not products.suits(torch.zeros(1, device="meta"), 9)
    with torch.no_grad():
        assert not products.suits(q, 9)


def test_a_layout_takes_the_faster_kernel() -> None:
    def nodes_of(out: Tensor) -> set[str]:
        todo, names = [out.grad_fn], set()
        while todo:
            node = todo.pop()
            if node is not None:
                names.add(type(node).__name__)
                todo += [before for before, _ in node.next_functions]
        return names

    for n_tokens, by_products in ((2048, True), (2049, False)):
        qkv = random_qkv(n_tokens, 0).float().requires_grad_()
        assert (
            "_AttendBackward" in nodes_of(PackedDocuments([n_tokens]).attend(0, *qkv.unbind(1), 0.0))
        ) == by_products
    for dtype, by_products in ((torch.bfloat16, True), (torch.float32, False)):
        qkv = random_qkv(40, 0).to(dtype)[None].requires_grad_()
        assert ("_AttendBackward" in nodes_of(CausalRows().attend(0, *qkv.unbind(2), 0.0))) == by_products


@pytest.mark.parametrize(("length", "saved"), [(200, {D, 224}), (256, {D, 256}), (257, {D, 160}), (600, {D, 224})])
def test_the_weights_of_many_keys_are_not_saved(length: int, saved: set[int]) -> None:
    """Memory grows with the tokens: of the groups of a long document only the first saves its weights."""
    widths = set()
    qkv = random_qkv(length, 7).float().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: widths.add(x.shape[-1]) or x, lambda x: x):
        PackedDocuments([length]).attend(0, *qkv.unbind(1), 0.0)
    assert widths == saved


def test_half_precision_agrees_with_the_exact_attention() -> None:
    exact = random_qkv(70, 6)
    for lengths, n_prefix in (([20, 45], 5), ([70], 0)):
        found, expected = (
            PackedDocuments(lengths, n_prefix).attend(0, *qkv.clone().requires_grad_().unbind(1), 0.0)
            for qkv in (exact.bfloat16(), exact)
        )
        assert type(found.grad_fn.next_functions[0][0]).__name__ == "_AttendBackward"
        torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.03)
