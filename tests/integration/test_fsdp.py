"""Two processes with shards are one: losses, metrics, answers and the bundle; a run goes on with shards or without."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SHARDED = ("trainer=fsdp", "trainer.devices=2", "data.batch_size=4")


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(command: Callable, small: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one` process and `two` with shards, each in one go; `shards` goes on from one, `whole` from shards."""
    folder = tmp_path_factory.mktemp("fsdp")
    options = (*small, "data.split={train:41,val:9,test:7}", "trainer.accelerator=cpu", "trainer.precision=32-true",
               "trainer.accumulate_grad_batches=2", "callbacks=generation_quality",
               "callbacks.generation_quality.max_new_tokens=4")  # fmt: skip
    command("train", *options, "trainer.max_epochs=3", "hydra.run.dir=one", cwd=folder)
    command("train", *options, *SHARDED, "trainer.max_epochs=3", "hydra.run.dir=two", cwd=folder)
    later = (*options, "trainer.max_epochs=4", "evaluate_base=false")
    command("train", *later, *SHARDED, "ckpt_path=one", "hydra.run.dir=shards", cwd=folder)
    command("train", *later, "ckpt_path=two", "hydra.run.dir=whole", cwd=folder)
    return folder


def same(found: Path, wanted: Path) -> None:
    a, b = rows_of(found / "history.jsonl"), rows_of(wanted / "history.jsonl")
    assert len(a) == len(b) > 8
    for x, y in zip(a, b, strict=True):
        for name in {"step", "tokens", "train/loss", "val/loss", "train/grad_norm", "lr"} & set(y):
            assert x[name] == pytest.approx(y[name], rel=2e-4, abs=1e-9), (y["step"], name)
    of_found, of_wanted = (json.loads((run / "metrics.json").read_text()) for run in (found, wanted))
    for name in ("val/loss", "test/loss", "test/bits_per_byte", "train/tokens", "n_steps", "best_step"):
        assert of_found[name] == pytest.approx(of_wanted[name], rel=2e-4), name
    ours, theirs = (load_file(run / "bundle" / "model.safetensors") for run in (found, wanted))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert (ours[name] - weight).abs().max() < 2e-3, name


@pytest.mark.slow
def test_losses_metrics_weights_and_answers_are_those_of_one_process(runs: Path) -> None:
    same(runs / "two", runs / "one")
    one, two = (rows_of(runs / name / "responses.jsonl") for name in ("one", "two"))
    assert [row["id"] for row in two] == [row["id"] for row in one] and len(one) == 7
    for name in ("response", "base_response"):
        assert [row[name] for row in two] == [row[name] for row in one]


@pytest.mark.slow
def test_a_run_goes_on_with_shards_or_without(runs: Path) -> None:
    same(runs / "shards", runs / "whole")


@pytest.mark.slow
def test_the_checkpoint_is_the_ordinary_one(runs: Path) -> None:
    one, two = (torch.load(runs / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("one", "two"))
    assert one["state_dict"].keys() == two["state_dict"].keys()
    (a,), (b,) = one["optimizer_states"], two["optimizer_states"]
    assert [group["params"] for group in b["param_groups"]] == [group["params"] for group in a["param_groups"]]
    for number, state in a["state"].items():
        assert torch.allclose(b["state"][number]["exp_avg"], state["exp_avg"], rtol=1e-2, atol=1e-6), number
