"""What goes with a model in shards, and what is refused; whole runs are in tests/integration/test_fsdp.py."""

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

from instruct_lit.accel.step import AcceleratedStep
from instruct_lit.config.check_commands import check_command
from instruct_lit.config.targets import build, target_of
from instruct_lit.core.model.gpt import GPT
from instruct_lit.core.training.loss import StepAccelerator
from instruct_lit.distributed.fsdp import FullySharded, _renamed
from instruct_lit.distributed.shards import Shards, _parts
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
    assert not _parts(tiny_model)


def test_names_become_numbers_and_names_again() -> None:
    state = {
        "state": {"b": {"step": torch.ones(())}},
        "param_groups": [{"lr": 1.0, "params": ["b"]}, {"params": ["a"]}],
    }
    numbered = _renamed(state, {"b": 0, "a": 1})
    assert [group["params"] for group in numbered["param_groups"]] == [[0], [1]] and list(numbered["state"]) == [0]
    assert _renamed(numbered, {0: "b", 1: "a"}) == state
    assert _renamed({}, {}) == {"state": {}, "param_groups": []}  # of the processes that hold none


@pytest.fixture
def strategy(tmp_path: Path) -> Iterator[FullySharded]:
    """The strategy in a job of this process alone, which has whole shards and the hooks of several processes."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    made = FullySharded()
    made._device_mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("data_parallel",))
    yield made
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("step", [StepAccelerator, AcceleratedStep])
@pytest.mark.parametrize("trained", ["everything", "the head", "the last block"])
@pytest.mark.filterwarnings("error")
def test_a_step_on_shards_has_the_loss_and_the_gradients_of_the_plain_step(
    step: Any, trained: str, strategy: FullySharded, llama_directory: Path
) -> None:
    """Also where nothing in front of the head is trained, whose states have no gradient of their own."""
    hf = pytest.importorskip("instruct_lit.hf.files")
    model = hf.load_hf(str(llama_directory)).train()
    chosen = {"everything": model, "the last block": model.blocks[-1]}.get(trained, model.hf.get_output_embeddings())
    for parameter in (model.requires_grad_(False) and chosen).parameters():
        parameter.requires_grad_()
    ids = torch.arange(5, 17)
    batch = SimpleNamespace(
        input_ids=ids, position_ids=torch.arange(12) % 6, document_lengths=[6, 6], prefix_length=0,
        loss_index=torch.tensor([2, 3, 9]), targets=torch.tensor([7, 8, 9]),
    )  # fmt: skip
    losses, gradients = [], []
    for sharded in (False, True):
        own, computed = copy.deepcopy(model), step()
        if sharded:
            Shards().shard(own, strategy)
            assert _parts(own)
        computed.attach(own)
        for _ in range(2):  # two micro-batches
            loss = computed.loss(batch, torch.full((3,), 1 / 3))
            loss.backward()
        losses.append(loss.detach())
        grads = {name: p.grad for name, p in own.named_parameters() if p.requires_grad}
        assert all(grad is not None for grad in grads.values()), "nothing would be trained"
        gradients.append({n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in grads.items()})
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)
