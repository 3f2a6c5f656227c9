"""The undocumented behaviour of peft that is used: a version without it is named here."""

import pytest
import torch
from torch import nn

from instruct_lit.hf import compat_peft as compat

peft = pytest.importorskip("peft")


class Small(nn.Module):
    """A module that is no model of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def test_peft_has_what_is_used() -> None:
    from peft.tuners import lora, tuners_utils

    assert hasattr(lora, "LoraModel"), "peft.tuners.lora.LoraModel is gone (insert_lora)"
    assert hasattr(tuners_utils, "BaseTunerLayer"), "peft.tuners.tuners_utils.BaseTunerLayer is gone (adapted_modules)"
    moves = hasattr(tuners_utils.BaseTunerLayer, "_move_adapter_to_device_of_base_layer")
    assert moves, "BaseTunerLayer._move_adapter_to_device_of_base_layer is gone (insert_lora)"
    for name in ("get_peft_model_state_dict", "set_peft_model_state_dict"):
        assert hasattr(peft, name), f"peft.{name} is gone"


def test_low_rank_layers_go_into_any_module_and_out_again() -> None:
    model = Small()
    tuner = compat.insert_lora(model, peft.LoraConfig(r=2, lora_alpha=7, target_modules=["second"]))
    assert compat.adapted_modules(model) == ["second"] and compat.lora_config(tuner)["lora_alpha"] == 7
    state = compat.lora_state(tuner)
    names = [f"base_model.model.second.lora_{part}.weight" for part in "AB"]
    assert sorted(state) == names, "peft's files have other names"
    assert compat.load_lora_state(tuner, {name: torch.ones_like(tensor) for name, tensor in state.items()}) == []
    assert compat.load_lora_state(tuner, {**state, "base_model.model.third.lora_A.weight": torch.ones(1)})
    for tensor in compat.lora_state(tuner).values():
        tensor.data.fill_(1.0)
    x = torch.randn(3, 4)
    changed = model(x)
    compat.merge_lora(tuner)
    torch.testing.assert_close(model(x), changed)
    assert type(model.second) is nn.Linear
