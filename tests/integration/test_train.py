"""The train command from start to end, and what it leaves in the run folder."""

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from instruct_lit.core.bundle import open_model
from instruct_lit.core.model.pretrained import load_gpt


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_run_folder_holds_what_the_readme_promises(small_run: Path) -> None:
    for name in (
        ".hydra/config.yaml", ".hydra/overrides.yaml", "config.yaml", "metrics.json", "responses.jsonl", "loss.png",
        "report.html", "split.json", "history.jsonl", "checkpoints/best.ckpt", "checkpoints/last.ckpt",
        "bundle/model.safetensors", "bundle/config.json", "tensorboard",
    ):  # fmt: skip
        assert (small_run / name).exists(), name


def test_metrics_are_flat_and_complete(small_run: Path) -> None:
    metrics = json.loads((small_run / "metrics.json").read_text())
    assert all(isinstance(value, int | float) for value in metrics.values())
    assert (metrics["n_train"], metrics["n_val"], metrics["n_test"], metrics["n_steps"]) == (40, 10, 10, 10)
    for split in ("val", "test"):
        assert metrics[f"{split}/perplexity"] == pytest.approx(
            torch.tensor(metrics[f"{split}/loss"]).exp().item(), rel=1e-4
        )
        assert metrics[f"{split}/response_loss"] == pytest.approx(metrics[f"{split}/loss"])  # the prompt is masked
        assert metrics[f"{split}/bits_per_byte"] > 0
    assert 0 <= metrics["test/exact_match"] <= 1
    assert metrics["train/tokens"] > 80 and metrics["tokens_per_s"] > 0 and metrics["peak_memory_bytes"] > 1e7
    assert metrics["stopped_early"] is False and metrics["interrupted"] is False
    assert metrics["base/val/loss"] > metrics["val/loss"]


def test_every_test_example_has_an_answer(small_run: Path) -> None:
    split = json.loads((small_run / "split.json").read_text())
    rows = rows_of(small_run / "responses.jsonl")
    assert [row["id"] for row in rows] == split["test"]
    assert {"id", "instruction", "input", "output", "response", "finish_reason"} <= set(rows[0])
    assert not set(split["train"]) & set(split["test"]) and not set(split["val"]) & set(split["test"])


def test_the_best_weights_are_those_of_the_lowest_validation_loss(small_run: Path) -> None:
    history = rows_of(small_run / "history.jsonl")
    losses = {row["step"]: row["val/loss"] for row in history if "val/loss" in row and row["step"] > 0}
    metrics = json.loads((small_run / "metrics.json").read_text())
    assert metrics["best_step"] == min(losses, key=losses.__getitem__)
    assert metrics["val/loss"] == pytest.approx(min(losses.values()), rel=1e-5)
    assert history[0]["step"] == 0 and "val/loss" in history[0]  # the base, before the first step
    best = torch.load(small_run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(load_gpt(small_run / "bundle").wte.weight, best["model.wte.weight"])


def test_the_bundle_tells_template_and_metrics(small_run: Path) -> None:
    bundle = open_model(small_run)
    assert bundle.template.name == "alpaca"
    assert bundle.about["metrics"]["n_train"] == 40 and bundle.about["data"]["name"] == "demo"


def test_the_report_is_one_self_contained_page(small_run: Path) -> None:
    page = (small_run / "report.html").read_text()
    assert "<svg" in page and "test/exact_match" in page
    assert "model.n_layers" in page  # the difference from the defaults
    assert not re.search(r"(src|href)=[\"']?(http|/)", page)
    first = rows_of(small_run / "responses.jsonl")[0]
    assert first["output"] in page


def test_tensorboard_has_curves_answers_and_hyper_parameters(small_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(small_run / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    scalars = {"train/loss", "val/loss", "train/grad_norm", "train/tokens_per_s", "val/response_loss"}
    assert scalars <= set(tags["scalars"]) and "train/lr/pg1" in tags["scalars"]
    assert any(tag.startswith("answers/0") for tag in tags["tensors"])
    assert (
        "_hparams_/experiment" in events.summary_metadata or "_hparams_/session_start_info" in events.summary_metadata
    )


@pytest.mark.slow
def test_trials_of_a_sweep_do_not_touch_each_other(
    small_run: Path, command: Callable, small: tuple[str, ...], tmp_path: Path
) -> None:
    """The second trial of a sweep is the run that it would be alone."""
    command("train", "-m", *small, "seed=7,123", "trainer.max_epochs=2", "hydra.sweep.dir=sweep", cwd=tmp_path)
    alone = json.loads((small_run / "metrics.json").read_text())
    swept = json.loads((tmp_path / "sweep" / "1" / "metrics.json").read_text())
    for name in ("val/loss", "test/loss", "base/val/loss"):
        assert swept[name] == pytest.approx(alone[name], rel=1e-6)
    assert json.loads((tmp_path / "sweep" / "0" / "metrics.json").read_text())["val/loss"] != swept["val/loss"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.max_step=3"], "did you mean trainer.max_steps?"),
        pytest.param(["data.mask_promt=true"], "did you mean data.mask_prompt?", marks=pytest.mark.slow),
        (["optimizer.lr=fast"], "optimizer.lr=fast: instruct_lit.core.training.optimizer.adamw requires float"),
        pytest.param(["seed=a"], "Value 'a' of type 'str' could not be converted to Integer", marks=pytest.mark.slow),
        (["data=files", "data.path=nowhere.json"], "data.path=nowhere.json: no such file or folder"),
        pytest.param(["model.path=nowhere"], "model.path=nowhere: no such folder", marks=pytest.mark.slow),
        pytest.param(
            ["model.n_heads=3"], "model.d_model=128: must be a multiple of model.n_heads=3", marks=pytest.mark.slow
        ),
        pytest.param(
            ["ckpt_path=nowhere"], "ckpt_path=nowhere: no such checkpoint or run folder", marks=pytest.mark.slow
        ),
        pytest.param(["ckpt_path=broken.ckpt"], "damaged, or not a checkpoint", marks=pytest.mark.slow),
        (["data.max_length=5000"], "data.max_length=5000"),
        (["template=file", "template.path=bad.jinja"], "{{ response }}"),
        (
            ["optimizer._target_=os.system"],
            "optimizer._target_=os.system: not an allowed target; allowed are instruct_lit.core.training.optimizer.adamw",
        ),
        pytest.param(
            ["callbacks.early_stopping.monitor=val/los"],
            "callbacks.early_stopping.monitor=val/los: logged are",
            marks=pytest.mark.slow,
        ),
        pytest.param(["trainer.val_check_interval=2.5"], "val_check_interval", marks=pytest.mark.slow),
    ],
)
def test_bad_input_gives_one_message_and_status_2(
    overrides: list[str], message: str, command: Callable, small: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "broken.ckpt").write_bytes(b"PK\x03\x04 not a checkpoint")
    (tmp_path / "bad.jinja").write_text("{{ instruction }}")
    done = command("train", *overrides, cwd=tmp_path, status=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout and done.stderr.count("error:") == 1


@pytest.mark.slow
def test_ctrl_c_ends_with_what_is_known_and_the_run_can_go_on(
    start: Callable, command: Callable, small: tuple[str, ...], tmp_path: Path
) -> None:
    arguments = [*small, "trainer.max_epochs=500", "callbacks.early_stopping=null", "evaluate_base=false"]
    process = start("train", *arguments, "hydra.run.dir=run", cwd=tmp_path)
    history = tmp_path / "run" / "history.jsonl"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and (not history.exists() or len(history.read_text().splitlines()) < 12):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    status, errors = process.wait(90), process.err.read_text()
    assert status == 130, errors[-2000:]
    assert "Traceback" not in errors and f"ckpt_path={tmp_path / 'run'}" in errors
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["interrupted"] is True and metrics["n_steps"] >= 5
    for name in ("report.html", "loss.png", "bundle/model.safetensors", "checkpoints/last.ckpt"):
        assert (tmp_path / "run" / name).is_file(), name
    command(
        "train",
        *arguments,
        f"trainer.max_steps={metrics['n_steps'] + 2}",
        "ckpt_path=run",
        "hydra.run.dir=rest",
        cwd=tmp_path,
    )
    assert json.loads((tmp_path / "rest" / "metrics.json").read_text())["n_steps"] == metrics["n_steps"] + 2


@pytest.mark.slow
def test_real_records_with_the_real_vocabulary(
    shared_data: Path, command: Callable, small: tuple[str, ...], tmp_path: Path
) -> None:
    records = shared_data / "instructions" / "book-1100.json"
    command("train", "model.pretrained=false", "model.path=null", "data=files", f"data.path={records}",
            "data.split=book", "trainer.max_steps=3", "debug=fast", "hydra.run.dir=run", cwd=tmp_path)  # fmt: skip
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["n_train"], metrics["n_test"], metrics["n_val"], metrics["n_steps"]) == (935, 110, 55, 3)
