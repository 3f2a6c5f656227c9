"""8-bit AdamW: which moments have 8 bits, and training as with 32."""

import copy
import sys
import types

import pytest
import torch

from instruct_lit.accel.adamw_8bit import adamw_8bit
from instruct_lit.core.model.gpt import GPT
from instruct_lit.errors import ConfigError


def test_eight_bits_for_the_blocks_and_32_for_the_embeddings(tiny_model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    overridden: list[int] = []
    manager = types.SimpleNamespace(
        register_parameters=lambda parameters: None,
        override_config=lambda p, key, value: overridden.append(id(p)) if (key, value) == ("optim_bits", 32) else None,
    )
    optim = types.SimpleNamespace(
        GlobalOptimManager=types.SimpleNamespace(get_instance=lambda: manager), AdamW8bit=torch.optim.AdamW
    )
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.SimpleNamespace(optim=optim))
    optimizer = adamw_8bit(tiny_model, lr=1e-3, weight_decay=0.3)
    assert set(overridden) == {id(tiny_model.wte.weight), id(tiny_model.wpe.weight)}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match="needs bitsandbytes; pip install bitsandbytes"):
        adamw_8bit(tiny_model, lr=1e-3)


def test_moments_of_eight_bits_train_as_those_of_32(tiny_model: GPT) -> None:
    pytest.importorskip("bitsandbytes")
    model, other = tiny_model, copy.deepcopy(tiny_model)
    optimizer, wide = adamw_8bit(model, lr=1e-3), torch.optim.AdamW(other.parameters(), lr=1e-3, weight_decay=0.0)
    for step in range(5):
        random = torch.Generator().manual_seed(step)
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=random)
            q.grad = p.grad.clone()
        optimizer.step()
        wide.step()
    matrix = model.blocks[0].mlp.fc.weight
    assert optimizer.state[matrix]["state1"].dtype == torch.uint8
    assert optimizer.state[model.wte.weight]["state1"].dtype == torch.float32
    moved = (other.blocks[0].mlp.fc.weight - matrix).abs().max()
    assert 0 < moved < 1e-3
