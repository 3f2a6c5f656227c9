"""Two processes with shards are one: losses, metrics, answers and the bundle; a run goes on with shards or without."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SHARDED = ("trainer=fsdp", "trainer.devices=2", "data.batch_size=4")
IN_SHARDS = (
    *SHARDED,
    "trainer.strategy.save_distributed_checkpoint=true",
    "model.activation_checkpointing=true",
)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(command: Callable, small: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four epochs: of `one` process, and of `two` with shards, which write theirs and compute activations again.

    `rest` goes on as the two from the `half` of them; `alone` is one process from there, and `whole` are two from that,
    which gather their checkpoints.
    """
    folder = tmp_path_factory.mktemp("fsdp")
    options = (*small, "verify=true", "data.split={train:41,val:9,test:7}", "trainer.accelerator=cpu", "trainer.precision=32-true",
               "trainer.accumulate_grad_batches=2", "scheduler=constant", "callbacks.early_stopping=null",
               "callbacks=generation_quality", "callbacks.generation_quality.max_new_tokens=4")  # fmt: skip
    for name, n_epochs, before, how in (
        ("one", 4, None, ()), ("two", 4, None, IN_SHARDS), ("half", 2, None, IN_SHARDS), ("rest", 4, "half", IN_SHARDS),
        ("alone", 3, "half", ()), ("whole", 4, "alone", SHARDED),
    ):  # fmt: skip
        start = [f"ckpt_path={before}", "evaluate_base=false"] if before else []
        command("train", *options, *how, f"trainer.max_epochs={n_epochs}", *start, f"hydra.run.dir={name}", cwd=folder)
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
def test_a_run_goes_on_from_shards_exactly(runs: Path) -> None:
    found, wanted = (
        [{k: v for k, v in row.items() if k != "tokens_per_s"} for row in rows_of(runs / name / "history.jsonl")]
        for name in ("rest", "two")
    )
    assert found == wanted[-len(found) :]
    answers = [[row["response"] for row in rows_of(runs / name / "responses.jsonl")] for name in ("rest", "two")]
    assert answers[0] == answers[1]
    ours, theirs = ((runs / name / "bundle" / "model.safetensors").read_bytes() for name in ("rest", "two"))
    assert ours == theirs


@pytest.mark.slow
def test_it_goes_on_with_shards_or_without(runs: Path) -> None:
    same(runs / "whole", runs / "one")


@pytest.mark.slow
def test_checkpoints_in_shards_are_rotated(runs: Path) -> None:
    folder = runs / "two" / "checkpoints"
    files = sorted(folder.glob("*.ckpt"))
    assert [path.name for path in files] == ["best.ckpt", "last.ckpt", "last.previous.ckpt"]
    named = {torch.load(path, weights_only=True)["shards"] for path in files}
    assert {path.name for path in folder.iterdir() if path.is_dir()} == named and len(named) == 3
    for name in named:
        assert len(list((folder / name).glob("*.safetensors"))) == 2, name


@pytest.mark.slow
def test_the_checkpoint_is_the_ordinary_one(runs: Path) -> None:
    one, two = (torch.load(runs / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("one", "whole"))
    assert one["state_dict"].keys() == two["state_dict"].keys()
    (a,), (b,) = one["optimizer_states"], two["optimizer_states"]
    assert [group["params"] for group in b["param_groups"]] == [group["params"] for group in a["param_groups"]]
    for number, state in a["state"].items():
        assert torch.allclose(b["state"][number]["exp_avg"], state["exp_avg"], rtol=1e-2, atol=1e-6), number


@pytest.mark.slow
def test_an_adapter_on_a_llama_in_bf16(command: Callable, llama_directory: Path, tmp_path: Path) -> None:
    options = ("model=hf", "template=chat", f"model.path={llama_directory}", "adapter=lora", "model.lr=1e-2",
               "data.source.n_examples=40", "data.split={train:24,val:8,test:8}", "data.batch_size=8", "data.max_length=160",
               "generation.max_new_tokens=4", "callbacks.sample_answers=null", "trainer.max_epochs=1",
               "trainer.log_every_n_steps=1", "trainer.accelerator=cpu", "trainer.precision=bf16-mixed")  # fmt: skip
    command("train", *options, "hydra.run.dir=one", cwd=tmp_path)
    command("train", *options, *IN_SHARDS, "hydra.run.dir=two", cwd=tmp_path)
    a, b = (rows_of(tmp_path / name / "history.jsonl") for name in ("two", "one"))
    assert [row["step"] for row in a] == [row["step"] for row in b]
    for x, y in zip(a, b, strict=True):
        for name in {"train/loss", "val/loss"} & set(y):
            assert x[name] == pytest.approx(y[name], rel=1e-2), (y["step"], name)
    ours, theirs = (load_file(tmp_path / name / "bundle" / "model.safetensors") for name in ("two", "one"))
    assert ours.keys() == theirs.keys()
    (shards,) = {path.name for path in (tmp_path / "two" / "checkpoints").glob("best-*.shards")}
    saved = [load_file(path) for path in (tmp_path / "two" / "checkpoints" / shards).iterdir()]
    assert all("lora_" in name for part in saved for name in part)  # what is frozen is the base's
