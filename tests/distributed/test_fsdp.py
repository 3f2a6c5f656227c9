"""What goes with a model in shards, and what is refused; whole runs are in tests/integration/test_fsdp.py."""

import pytest
import torch

from instruct_lit.config.check_commands import check_command
from instruct_lit.config.targets import build, target_of
from instruct_lit.core.model.gpt import GPT
from instruct_lit.distributed.fsdp import FullySharded, _renamed, is_sharded
from instruct_lit.distributed.shards import Shards
from instruct_lit.errors import ConfigError
from tests.configs import composed


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer=muon"], "cannot work on shards; trainer=fsdp requires optimizer=adamw"),
        (["callbacks=ema"], "callbacks.weight_averaging=…: averages whole weights, which trainer=fsdp does not have"),
        (["adapter=qlora", "model=hf", "model.path=a/b"], "4-bit weights cannot be sharded"),
    ],
)
def test_what_cannot_be_sharded_is_refused_before_any_work(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_command("train", composed("train", "trainer=fsdp", *overrides))
    assert message in str(caught.value)


def test_a_misspelt_argument_of_the_strategy_is_named() -> None:
    strategy = composed("train", "trainer=fsdp", "+trainer.strategy.shard=true").trainer.strategy
    with pytest.raises(ConfigError, match="trainer.strategy.shard: .*has no such argument"):
        target_of(strategy, "trainer.strategy")


def test_the_strategy_is_built() -> None:
    node = composed("train", "trainer=fsdp").trainer.strategy
    assert isinstance(build(node, "trainer.strategy"), FullySharded)


def test_another_model_is_left_alone(tiny_model: GPT) -> None:
    before = tiny_model.wte.weight
    with Shards().gathered(tiny_model):
        assert tiny_model.wte.weight is before
    assert not is_sharded(tiny_model)


def test_names_become_numbers_and_names_again() -> None:
    state = {
        "state": {"b": {"step": torch.ones(())}},
        "param_groups": [{"lr": 1.0, "params": ["b"]}, {"params": ["a"]}],
    }
    numbered = _renamed(state, {"b": 0, "a": 1})
    assert [group["params"] for group in numbered["param_groups"]] == [[0], [1]] and list(numbered["state"]) == [0]
    assert _renamed(numbered, {0: "b", 1: "a"}) == state
    assert _renamed({}, {}) == {"state": {}, "param_groups": []}  # of the processes that hold none
