"""One new token for each row: as matrix products it gets what it gets from the plain implementation."""

import pytest
import torch
from torch import Tensor

from instruct_lit.accel import attention_decode as module
from instruct_lit.core.model import attention
from instruct_lit.core.model.attention import Decode, KeyValueCache
from instruct_lit.core.model.gpt import GPTConfig

SHAPE = GPTConfig(n_vocab=10, context_length=64, d_model=24, n_layers=3, n_heads=3)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each call of the kernel, which is the only one registered, whether it supported the arguments."""
    found: list[bool] = []

    def kernel(*given):
        out = module.attend_decode(*given)
        found.append(out is not None)
        return out

    monkeypatch.setattr(attention, "KERNELS", [kernel])
    return found


def attended(lengths: list[int], n_places: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The attended values of each row's new token in three layers, with a cache of two rows more than are in use.

    The second layer has a window of four tokens.
    """
    random = torch.Generator().manual_seed(7)
    cache = KeyValueCache(SHAPE, len(lengths) + 2, n_places, dtype, torch.device("cpu"))
    for tensor in cache.tensors:
        tensor.normal_(generator=random)
        for row, length in enumerate(lengths):
            tensor[row, :, length:] = 100.0  # of an earlier response
    layout = Decode(cache, lengths)
    found = []
    for layer, window in enumerate([None, 4, None]):
        q, k, v = torch.randn(3, len(lengths), 1, 3, 8, generator=random).to(dtype)
        found.append(layout.attend(layer, q, k, v, 0.0, window))
    return torch.stack(found)


@pytest.mark.parametrize("lengths", [[5], [0], [9, 4, 7], [6, 6, 6, 6]])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_products_are_the_plain_attention(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int], dtype: torch.dtype, tolerance: float, calls: list[bool]
) -> None:
    n_places = 2 * (max(lengths) + 1)
    monkeypatch.setattr(module, "suits", lambda q: False)
    expected = attended(lengths, n_places, dtype)
    assert calls == [False] * 3
    monkeypatch.setattr(module, "suits", lambda q: True)
    found = attended(lengths, n_places, dtype)
    assert calls[3:] == [True] * 3 and found.shape == (3, len(lengths), 1, 3, 8)
    assert (found - expected).abs().max() <= tolerance
    attended(lengths, n_places + 1, dtype)
    assert calls[6:] == [False] * 3, "a cache that is mostly empty is not read whole"


def test_products_are_for_bf16_without_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_bf16_products", lambda: True)
    monkeypatch.setattr(module, "has_amx_tiles", lambda: False)
    q = torch.zeros(2, 1, 3, 8)
    assert module.suits(q.bfloat16()) and not module.suits(q)
    assert not module.suits(q.bfloat16().to("meta"))
    monkeypatch.setattr(module, "has_amx_tiles", lambda: True)
    assert not module.suits(q.bfloat16())
    monkeypatch.setattr(module, "has_amx_tiles", lambda: False)
    monkeypatch.setattr(module, "has_bf16_products", lambda: False)
    assert not module.suits(q.bfloat16())


def test_grouped_heads_use_the_plain_attention(monkeypatch: pytest.MonkeyPatch, calls: list[bool]) -> None:
    monkeypatch.setattr(module, "suits", lambda q: True)
    cache = KeyValueCache(SHAPE, 1, 4, torch.float32, torch.device("cpu"))
    k = torch.randn(1, 1, 3, 8)
    found = Decode(cache, [0]).attend(0, torch.randn(1, 1, 6, 8), k, k, 0.0)
    assert calls == [False] and torch.allclose(found, k.repeat_interleave(2, 2)), "the only key has all the weight"
