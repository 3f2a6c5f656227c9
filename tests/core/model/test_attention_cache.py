"""The layouts of cached generation store keys and values, and attend as the layouts of training do."""

import pytest
import torch
from torch import Tensor

from instruct_lit.core.model import attention
from instruct_lit.core.model.attention import CausalRows, Decode, KeyValueCache, Prefill
from instruct_lit.core.model.gpt import GPTConfig
from tests.fixtures.attention import random_qkv

SHAPE = GPTConfig(n_vocab=10, context_length=64, d_model=24, n_layers=1, n_heads=3)


@pytest.fixture(autouse=True)
def _no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "KERNELS", [])


@pytest.mark.parametrize("lengths", [[4], [3, 3], [5, 2, 9]])
@pytest.mark.parametrize("n_prefix", [0, 3])
@pytest.mark.parametrize("window", [None, 1, 4])
def test_prefill_and_decode_are_each_row_alone(lengths: list[int], n_prefix: int, window: int | None) -> None:
    """The first row of the cache is another's; each prompt is prefilled, then one token is decoded."""
    prefix, own = random_qkv(n_prefix, 0), [random_qkv(n + 1, 1 + n) for n in lengths]
    cache = KeyValueCache(SHAPE, 1 + len(lengths), 16, torch.float64, torch.device("cpu"))
    cache.keys[0][0] = cache.values[0][0] = 100.0
    flat = torch.cat([prefix, *(row[:-1] for row in own)])
    prefilled = Prefill(cache, 1, lengths, n_prefix).attend(0, *flat.unbind(1), 0.0, window)
    new = torch.stack([row[-1:] for row in own])  # (R, 1, 3, H, D)
    q, k, v = (torch.cat((torch.zeros(1, 1, 3, 8), x.float())).double() for x in new.unbind(2))
    decoded = Decode(cache, [0, *(n_prefix + n for n in lengths)]).attend(0, q, k, v, 0.0, window)
    start = n_prefix
    for row, document in enumerate(own):
        whole = torch.cat((prefix, document))[None].unbind(2)
        (expected,) = CausalRows().attend(0, *whole, 0.0, window)
        n = len(document) - 1
        torch.testing.assert_close(prefilled[start : start + n], expected[n_prefix:-1], rtol=0, atol=1e-12)
        torch.testing.assert_close(decoded[1 + row, 0], expected[-1], rtol=0, atol=1e-6)
        start += n


def test_heads_of_keys_are_shared_by_neighbouring_queries() -> None:
    cache = KeyValueCache(SHAPE, 1, 4, torch.float32, torch.device("cpu"))
    k: Tensor = torch.randn(1, 1, 3, 8)
    found = Decode(cache, [0]).attend(0, torch.randn(1, 1, 6, 8), k, k, 0.0)
    assert torch.allclose(found, k.repeat_interleave(2, 2)), "the only key has all the weight"


def test_a_row_is_copied_over_another() -> None:
    cache = KeyValueCache(SHAPE, 2, 4, torch.float32, torch.device("cpu"))
    cache.keys[0][1], cache.values[0][1] = 1.0, 2.0
    cache.move(1, 0, 3)
    assert cache.keys[0][0, 0, :, 0].tolist() == [1, 1, 1, 0] and cache.values[0][0, 2, :, 7].tolist() == [2, 2, 2, 0]
