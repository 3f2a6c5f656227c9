"""One new token for each row: as products of matrices it sees what it sees through the fused kernel."""

import pytest
import torch
from torch import Tensor

from instruct_lit.core.model import kv_cache as module
from instruct_lit.core.model.gpt import GPTConfig
from instruct_lit.core.model.kv_cache import Decode, KeyValueCache, suits_products

SHAPE = GPTConfig(n_vocab=10, context_length=64, d_model=24, n_layers=2, n_heads=3)


def attended(lengths: list[int], n_places: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """What each row's new token gets in two layers, of a cache with two rows more than are in use."""
    random = torch.Generator().manual_seed(7)
    cache = KeyValueCache(SHAPE, len(lengths) + 2, n_places, dtype, torch.device("cpu"))
    for tensor in (cache.keys, cache.values):
        tensor.normal_(generator=random)
        for row, length in enumerate(lengths):
            tensor[:, row, :, length:] = 100.0  # of an answer that stood here before
    layout = Decode(cache, lengths)
    found = []
    for layer in range(2):
        q, k, v = torch.randn(3, len(lengths), 1, 3, 8, generator=random).to(dtype)
        found.append(layout.attend(layer, q, k, v, 0.0))
    return torch.stack(found)


@pytest.mark.parametrize("lengths", [[5], [0], [9, 4, 7], [6, 6, 6, 6]])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_products_see_what_the_kernel_sees(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int], dtype: torch.dtype, tolerance: float
) -> None:
    n_places, calls = 2 * (max(lengths) + 1), []
    by_products = Decode._by_products
    monkeypatch.setattr(Decode, "_by_products", lambda *given: calls.append(1) or by_products(*given))
    monkeypatch.setattr(module, "suits_products", lambda q: False)
    expected = attended(lengths, n_places, dtype)
    assert not calls
    monkeypatch.setattr(module, "suits_products", lambda q: True)
    found = attended(lengths, n_places, dtype)
    assert len(calls) == 2 and found.shape == (2, len(lengths), 1, 3, 8)
    assert (found - expected).abs().max() <= tolerance
    attended(lengths, n_places + 1, dtype)
    assert len(calls) == 2, "a cache that is mostly empty is not read whole"


def test_products_are_for_bf16_without_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "multiplies_in_bf16", lambda: True)
    monkeypatch.setattr(module, "multiplies_in_tiles", lambda: False)
    q = torch.zeros(2, 1, 3, 8)
    assert suits_products(q.bfloat16()) and not suits_products(q)
    assert not suits_products(q.bfloat16().to("meta"))
    monkeypatch.setattr(module, "multiplies_in_tiles", lambda: True)
    assert not suits_products(q.bfloat16())
    monkeypatch.setattr(module, "multiplies_in_tiles", lambda: False)
    monkeypatch.setattr(module, "multiplies_in_bf16", lambda: False)
    assert not suits_products(q.bfloat16())


def test_heads_that_share_keys_ask_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "suits_products", lambda q: True)
    cache = KeyValueCache(SHAPE, 1, 4, torch.float32, torch.device("cpu"))
    k = torch.randn(1, 1, 3, 8)
    found = Decode(cache, [0]).attend(0, torch.randn(1, 1, 6, 8), k, k, 0.0)
    assert torch.allclose(found, k.repeat_interleave(2, 2)), "the only key has all the weight"
