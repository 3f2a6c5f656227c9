"""A tree holds every common prefix once, and its hidden states equal those of separate texts."""

import pytest
import torch

from instruct_lit.core.model.gpt import GPT
from instruct_lit.suites.prefix_tree import PrefixTree
from tests.fixtures.attention import random_qkv, reference


def test_common_beginnings_are_there_once() -> None:
    tree = PrefixTree([[1, 2, 3], [1, 2, 3, 4], [1, 2, 5], [1, 2, 5], [7]])
    assert tree.ids == [1, 2, 3, 4, 5, 7] and tree.position_ids == [0, 1, 2, 3, 2, 0]
    assert tree.paths == [[0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 1, 4], [5]]


def test_hidden_states_are_those_of_the_texts_alone(tiny_model: GPT) -> None:
    draw = torch.Generator().manual_seed(1)
    shared = torch.randint(0, 50257, (20,), generator=draw).tolist()
    texts = sorted(
        shared[:n] + torch.randint(0, 9, (m,), generator=draw).tolist() for n in (0, 5, 20) for m in (1, 3, 30, 44)
    )
    tree = PrefixTree(texts)
    assert len(tree.ids) < sum(map(len, texts))
    with torch.no_grad():
        hidden = tiny_model.hidden_states(torch.tensor(tree.ids), torch.tensor(tree.position_ids), tree)
        for text, path in zip(texts, tree.paths, strict=True):
            alone = tiny_model.hidden_states(torch.tensor([text]))[0]
            torch.testing.assert_close(hidden[path], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 3, 9])
def test_layers_with_a_window_see_the_last_tokens_of_a_path(window: int | None) -> None:
    tree = PrefixTree(sorted([[1] * 9, [1, 1, 1, 2], [1, 1, 1, 2, 3, 4, 5, 6], [1, 1, 7], [8, 9]]))
    qkv = random_qkv(len(tree.ids), 0)
    found = tree.attend(0, *qkv.unbind(1), 0.0, window)
    for path in tree.paths:
        torch.testing.assert_close(found[path], reference(qkv[path], window), rtol=0, atol=1e-12)
