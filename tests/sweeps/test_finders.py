"""Finders: the suggested rate, the largest that fits, and both in real runs."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer

from instruct_lit.config.run_hooks import Finder
from instruct_lit.core.model.causal import token_losses
from instruct_lit.core.training.loss import layout_of
from instruct_lit.errors import ConfigError, TrainingError
from instruct_lit.sweeps import finders
from instruct_lit.sweeps.finders import LargestBatch, LearningRateRange, largest, suggested
from tests.configs import composed


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=-1,
        max_steps=40, enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
        check_val_every_n_epoch=1000, default_root_dir=tmp_path,
    )  # fmt: skip


def test_the_suggestion_is_a_tenth_of_the_rate_at_the_lowest_loss() -> None:
    rates = np.logspace(-6, 0, 61)
    losses = (np.log10(rates) + 2) ** 2  # lowest at 1e-2
    losses[-1] = np.nan
    assert suggested(rates.tolist(), losses.tolist()) == pytest.approx(1e-3)


def test_a_loss_that_never_falls_has_no_suggestion() -> None:
    with pytest.raises(TrainingError, match=r"the loss never falls; lower finder\.min_lr"):
        suggested(np.logspace(-6, 0, 30).tolist(), list(range(30)))


def test_a_range_finds_a_rate_and_writes_a_plot(
    make_tuner: Callable, make_data: Callable, trainer: Trainer, tmp_path: Path
) -> None:
    tuner = make_tuner(make_optimizer=lambda model: torch.optim.AdamW(model.parameters()))
    found = LearningRateRange(1e-5, 30.0, 40)(trainer, tuner, make_data(), tmp_path)
    kept = json.loads((tmp_path / "lr_range.json").read_text())
    assert kept["suggestion"] == found and 1e-4 < found < 1
    assert len(kept["lr"]) == len(kept["loss"]) > 20
    assert (tmp_path / "lr_range.png").stat().st_size > 5000


def test_the_losses_of_a_range_are_the_averages_of_whole_steps(
    make_tuner: Callable, make_data: Callable, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each over all tokens of its micro-batches, also of the short last step of an epoch (three batches)."""
    monkeypatch.setattr(finders, "suggested", lambda rates, losses: 0.0)
    trainer.accumulate_grad_batches = 2
    tuner = make_tuner(make_optimizer=lambda model: torch.optim.SGD(model.parameters()))
    model, data = copy.deepcopy(tuner.model), make_data()
    LearningRateRange(1e-9, 1e-7, 20)(trainer, tuner, data, tmp_path)  # too small to change a loss
    kept = json.loads((tmp_path / "lr_range.json").read_text())
    assert kept["lr"] == pytest.approx(np.geomspace(1e-9, 1e-7, 20))
    total = average = 0.0
    for step, found in enumerate(kept["loss"]):
        loader = data.train_dataloader()
        loader.set_epoch(step // 2)
        window = list(loader)[2 * (step % 2) :][:2]
        states = [model.hidden_states(b.input_ids, b.position_ids, layout_of(b), b.loss_index) for b in window]
        losses = [token_losses(model, x, b.targets) @ b.loss_weights for x, b in zip(states, window, strict=True)]
        mean = sum(losses) / sum(batch.n_supervised for batch in window)
        total, average = total * 0.98 + 1, average * 0.98 + float(mean)
        assert found == pytest.approx(average / total, rel=1e-5)


@pytest.mark.parametrize("arguments", [(0.0, 1.0, 50), (1.0, 0.1, 50), (1e-5, 1.0, 5)])
def test_an_impossible_range_is_refused(arguments: tuple[float, float, int]) -> None:
    with pytest.raises(ConfigError, match="needs 0 < min_lr < max_lr and n_steps of at least 20"):
        LearningRateRange(*arguments)


def test_a_search_without_a_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="finder.max_size=0: at least 1 is needed"):
        LargestBatch(max_size=0)


@pytest.mark.parametrize(
    ("sweep", "override"),
    [("lr_range", "finder.n_steps=12"), ("lr_range", "finder.min_lr=0"), ("batch_size", "finder.max_size=0")],
)
def test_an_impossible_search_is_refused_before_the_data_are_read(sweep: str, override: str) -> None:
    with pytest.raises(ConfigError, match=override.removeprefix("finder.")):
        Finder(composed("train", f"sweep={sweep}", override))


@pytest.mark.parametrize(("limit", "most", "wanted"), [(7, 100, (7, 8)), (100, 64, (64, None)), (0, 8, (0, 1))])
def test_the_search_ends_at_the_limit(limit: int, most: int, wanted: tuple[int, int | None]) -> None:
    assert largest(lambda n: n <= limit, most) == wanted


def test_the_search_is_within_six_percent() -> None:
    size, refused = largest(lambda n: n <= 1000, 4096)
    assert refused is not None and 940 < size <= 1000 < refused <= 1062


def test_the_largest_batch_is_tried_with_the_longest_examples(
    make_tuner: Callable, make_data: Callable, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(n_train=30)
    data.setup()
    tried: list[int] = []

    def step(model: object, optimizer: object, batch: object, bf16: bool) -> float:
        tried.append(batch.n_tokens)  # type: ignore[attr-defined]
        if len(batch.example_ids) > 11:  # type: ignore[attr-defined]
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return 0.0

    monkeypatch.setattr(finders, "train_step", step)
    assert LargestBatch()(trainer, make_tuner(), data, tmp_path) == 11
    found = json.loads((tmp_path / "batch_size.json").read_text())
    assert (found["batch_size"], found["refused"], found["step_s"]) == (11, 12, 0.0)
    store, indices = data.examples_of("train")
    assert tried[0] == max(store.lengths[indices]) - 1


def test_all_that_there_are_may_fit_and_a_budget_is_refused(
    make_tuner: Callable, make_data: Callable, trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_data(n_train=6)
    data.setup()
    assert LargestBatch()(trainer, make_tuner(), data, tmp_path) == 6
    assert "the largest tried (all examples, or finder.max_size): data.batch_size=6" in capsys.readouterr().out
    data = make_data(n_train=6, grouping="best_fit", max_tokens=500)
    with pytest.raises(ConfigError, match=r"set batching\.max_tokens=null, which bounds the batches"):
        LargestBatch()(trainer, make_tuner(), data, tmp_path)


def test_slow_steps_end_the_search_with_an_estimate(
    make_tuner: Callable, make_data: Callable, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = make_data(n_train=30)
    data.setup()
    monkeypatch.setattr(finders, "train_step", lambda model, optimizer, batch, bf16: float(len(batch.example_ids)))
    monkeypatch.setattr(finders, "free_memory", lambda device: 10**9)
    assert LargestBatch(max_step_s=10)(trainer, make_tuner(), data, tmp_path) == 8
    by_memory = json.loads((tmp_path / "batch_size.json").read_text())["by_memory"]
    assert 100 < by_memory < 10**5
    out = capsys.readouterr().out
    assert "1.0 GB of free memory" in out
    assert "data.batch_size=8; a step with twice as many takes about 16 s, longer than finder.max_step_s=10; the" in out
    assert f"the free memory would hold about {by_memory:,}" in out
