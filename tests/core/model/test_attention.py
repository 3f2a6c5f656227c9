"""The plain attention of the core: packed documents and causal rows are each document alone, outputs and gradients."""

import pytest
import torch

from instruct_lit.core.model import attention
from instruct_lit.core.model.attention import CausalRows, PackedDocuments
from tests.fixtures.attention import (
    LENGTHS,
    check_documents,
    check_dropout,
    check_independence,
    check_rows,
    random_qkv,
)


@pytest.fixture(autouse=True)
def _no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "KERNELS", [])


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("n_prefix", [0, 1, 9])
def test_packed_documents_are_the_documents_alone(lengths: list[int], n_prefix: int) -> None:
    check_documents(lengths, n_prefix)


@pytest.mark.parametrize("window", [1, 4, 30, 400])
@pytest.mark.parametrize("n_prefix", [0, 9])
def test_layers_with_a_window_see_the_last_tokens_of_a_document(n_prefix: int, window: int) -> None:
    check_documents([4, 50, 1, 6], n_prefix, window)


@pytest.mark.parametrize("window", [None, 1, 30, 150])
def test_rows_are_causal(window: int | None) -> None:
    check_rows(window)


def test_trap_10_changing_one_document_leaves_the_others_unchanged() -> None:
    check_independence()


def test_dropout_drops_weights() -> None:
    check_dropout()


def test_heads_of_keys_are_shared_by_neighbouring_queries() -> None:
    q, k, v = random_qkv(7, 0).repeat(1, 1, 2, 1).unbind(1)  # six heads of queries
    k, v = k[:, :3], v[:, :3]
    every = [x.repeat_interleave(2, 1) for x in (k, v)]
    for layout in (PackedDocuments([3, 2], 2), CausalRows()):
        rows = isinstance(layout, CausalRows)
        found, expected = (layout.attend(0, *(x[None] if rows else x for x in (q, *kv)), 0.0) for kv in ((k, v), every))
        assert torch.equal(found, expected)


def test_kernels_are_tried_in_order_until_one_supports_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuses(layout, q, k, v, dropout, window):
        asked.append((type(layout), dropout, window))

    monkeypatch.setattr(attention, "KERNELS", [refuses, lambda layout, q, k, v, dropout, window: q + 1])
    q, k, v = random_qkv(5, 0).unbind(1)
    assert torch.equal(PackedDocuments([5]).attend(0, q, k, v, 0.25, 2), q + 1)
    assert torch.equal(CausalRows().attend(0, q[None], k[None], v[None], 0.0), q[None] + 1)
    assert asked == [(PackedDocuments, 0.25, 2), (CausalRows, 0.0, None)]


def test_a_layout_refuses_what_it_was_not_made_for() -> None:
    with pytest.raises(AssertionError, match="a document has at least one token"):
        PackedDocuments([3, 0])
    with pytest.raises(AssertionError, match="5 tokens for a layout of 6"):
        PackedDocuments([6]).attend(0, *random_qkv(5, 0).unbind(1), 0.0)
