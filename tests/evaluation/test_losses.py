"""Losses of single examples do not depend on the batch."""

import numpy as np
import pytest
import torch

from instruct_lit.core.data.encode import EncodedExample
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.model.gpt import GPT
from instruct_lit.evaluation import losses


def example(index: int, n_prompt: int, n_response: int) -> EncodedExample:
    ids = np.random.default_rng(index).integers(0, 50257, n_prompt + n_response)
    is_response = np.arange(n_prompt + n_response) >= n_prompt
    return EncodedExample(index, ids, is_response)


@pytest.mark.parametrize("max_tokens", [10, 4096])
def test_each_loss_is_that_of_the_example_alone(
    max_tokens: int, tiny_model: GPT, tokenizer: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "MAX_TOKENS", max_tokens)
    examples = [example(0, 9, 3), example(1, 1, 1), example(2, 5, 20), example(3, 9, 3)]
    done: list[int] = []
    tiny_model.train()
    found = losses.response_losses(tiny_model, tokenizer, examples, done.append)
    assert tiny_model.training and sum(done) == 4 and (len(done) == 1) == (max_tokens == 4096)
    tiny_model.eval()
    for (loss, n_tokens), one in zip(found, examples, strict=True):
        ids = torch.from_numpy(one.ids)
        with torch.no_grad():
            of_tokens = torch.nn.functional.cross_entropy(tiny_model(ids[None, :-1])[0], ids[1:], reduction="none")
        assert n_tokens == one.is_response.sum()
        assert loss == pytest.approx(float(of_tokens[-n_tokens:].mean()), rel=1e-5)
