"""What a run writes at its end is tried before its first step."""

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from instruct_lit.config.preflight import Preflight, check_room, remove_unfinished
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.gpt import GPT
from instruct_lit.core.training.checkpoints import Checkpoint
from instruct_lit.errors import ConfigError
from instruct_lit.hf.files import load_hf
from instruct_lit.hf.tokenizer import load_tokenizer
from instruct_lit.reports.loggers import Csv
from instruct_lit.resume.checkpoint_files import DurableIO, previous_of
from instruct_lit.resume.last_checkpoint import LastCheckpoint

OWN = Template("own", "Do: {{ instruction }}\nAnswer: {{ response }}")


def run_of(folder: Path, model: Any, tokenizer: Any, loggers: Any = ()) -> Any:
    """What `Preflight` reads of a run."""
    trainer = SimpleNamespace(
        is_global_zero=True, loggers=list(loggers), checkpoint_callbacks=[], callbacks=[], max_epochs=3,
        val_check_interval=1.0, enable_autolog_hparams=False,
    )  # fmt: skip
    settings = SimpleNamespace(sampling=SamplingSettings(), fit=True)
    optimizer = {"_target_": "instruct_lit.core.training.optimizer.adamw"}
    paths = SimpleNamespace(cache=folder / "cache")
    config = SimpleNamespace(
        paths=paths, bundle_dtype=None, adapter=SimpleNamespace(merge=True), model={}, optimizer=optimizer
    )
    parts = SimpleNamespace(adapter=None, config=config)
    return SimpleNamespace(
        run_dir=folder, trainer=trainer, settings=settings, about={}, model=model, tokenizer=tokenizer, template=OWN,
        parts=parts, checkpoint=None,
    )  # fmt: skip


def test_nothing_is_left_and_each_logger_has_a_row(tmp_path: Path, tiny_model: GPT) -> None:
    for name in (".bundle.abcd1234/new", ".preflight.abcd1234"):  # of a killed run
        (tmp_path / name).mkdir(parents=True)
    logger = Csv(str(tmp_path / "csv"))
    Preflight().on_prepared(run_of(tmp_path, tiny_model, GPT2Tokenizer(), [logger]))
    assert [path.name for path in tmp_path.iterdir()] == ["csv"]
    logger.log_metrics({"val/loss": 2.0}, step=4)
    logger.save()
    header, *rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert header == "step,val/loss" and rows == ["4,2.0"]  # none before the first of the run


@pytest.mark.parametrize(
    ("fit", "resumes", "kept"), [(True, True, ["1", "2"]), (True, False, []), (False, True, ["1", "2", "3"])]
)
def test_rows_beyond_the_checkpoint_leave_a_csv_file_that_is_trained_on(
    fit: bool, resumes: bool, kept: list[str], tmp_path: Path, tiny_model: GPT
) -> None:
    first = Csv(str(tmp_path), version="", flush_logs_every_n_steps=1)
    for step in (1, 2, 3):
        first.log_metrics({"val/loss": 1.0}, step)
    run = run_of(tmp_path, tiny_model, GPT2Tokenizer(), [again := Csv(str(tmp_path), version="")])
    run.settings.fit, run.checkpoint = fit, tmp_path / "last.ckpt" if resumes else None
    torch.save({"state_dict": {}, "global_step": 2}, tmp_path / "last.ckpt")
    Preflight().on_prepared(run)
    assert [row["step"] for row in again.rows()] == kept


def test_a_base_whose_generation_defaults_do_not_go_with_greedy(llama_directory: Path, tmp_path: Path) -> None:
    base = shutil.copytree(llama_directory, tmp_path / "base")
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.9, "eos_token_id": 1}))
    (tmp_path / "run").mkdir()
    Preflight().on_prepared(run_of(tmp_path / "run", load_hf(str(base)), load_tokenizer(str(base))))
    assert not list((tmp_path / "run").iterdir())


def test_what_cannot_be_written_is_named_before_training(
    tmp_path: Path, tiny_model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Csv):
        def log_metrics(self, *args: Any, **more: Any) -> None:
            raise RuntimeError("no\nroute to host")

    with pytest.raises(ConfigError, match=r"before training: the loggers of .* \(RuntimeError: no route to host\)"):
        Preflight().on_prepared(run_of(tmp_path, tiny_model, GPT2Tokenizer(), [Broken(str(tmp_path))]))

    def no_report(*args: Any) -> None:
        raise KeyError("loss")

    monkeypatch.setattr("instruct_lit.reports.run_page.write_report", no_report)
    with pytest.raises(
        ConfigError, match="before training: the report of this run cannot be written and opened again .*KeyError"
    ):
        Preflight().on_prepared(run_of(tmp_path, tiny_model, GPT2Tokenizer()))
    monkeypatch.setattr("instruct_lit.core.bundle.save_tokenizer", no_report)
    with pytest.raises(
        ConfigError, match="before training: the bundle of this run cannot be written and opened again .*KeyError"
    ):
        Preflight().on_prepared(run_of(tmp_path, tiny_model, GPT2Tokenizer()))


def checkpoints(folder: Path, top_k: int = 1) -> list[Any]:
    best = Checkpoint(folder, filename="best", monitor="val/loss", save_weights_only=True, save_top_k=top_k)
    return [best, LastCheckpoint(str(folder))]


@pytest.mark.parametrize(
    ("case", "files"),
    [
        ("default", 3 * 3 + 1),  # last, last.previous, the next one in writing; best: in units of the weights
        ("three of the best", 3 * 3 + 3),
        ("muon", 3 * 2 + 1),
        ("unknown optimizer", 3 * 1 + 1),
        ("no last", 1 + 1),  # best and its next, or the bundle
        ("one validation", 3 + 1 + 1),  # last, best, and the bundle, which is written after them
        ("one validation, more checkpoints", 3 * 3 + 1),
        ("weight averaging", 3 * 4 + 1),
        ("fit=false", 1),  # the bundle
        ("resumed", 3),
    ],
)
def test_a_disk_without_room_is_named(
    case: str, files: int, tmp_path: Path, tiny_model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = run_of(tmp_path, tiny_model, GPT2Tokenizer()), tmp_path / "checkpoints"
    weights = 4 * tiny_model.n_parameters
    run.trainer.checkpoint_callbacks = checkpoints(folder, 3 if case.startswith("three") else 1)
    run.settings.fit = case != "fit=false"
    if case.startswith("one validation"):
        run.trainer.max_epochs = 1
        run.trainer.checkpoint_callbacks[1].every_n_steps = 5 if case.endswith("checkpoints") else None
    if case == "weight averaging":
        run.trainer.callbacks = [EMAWeightAveraging()]
    if case in ("muon", "unknown optimizer"):
        run.parts.config.optimizer["_target_"] = f"package.{case}"
    if case == "no last":
        run.trainer.checkpoint_callbacks.pop()
    if case == "resumed":
        folder.mkdir()
        for name, n in {"last": 3, "last.previous": 3, "best": 1}.items():
            (folder / f"{name}.ckpt").write_bytes(bytes(n * weights))
    free = {"free": files * weights - 1}
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(**free))
    gigabytes = f"{files * weights / 1e9:.2f}"
    with pytest.raises(
        ConfigError, match=rf"paths.outputs: .* GB free, and .* take {gigabytes} GB; make room, or choose"
    ):
        check_room(run)
    free["free"] += 1
    check_room(run)
    run.parts.config.bundle_dtype, free["free"] = "bfloat16", free["free"] - weights // 2
    if files > 1 and case != "one validation":  # a checkpoint in writing is larger than the bundle
        with pytest.raises(ConfigError) as refused:
            check_room(run)
        assert ("callbacks.last_checkpoint=null" in str(refused.value)) == (case != "no last")
    else:
        check_room(run)


def test_a_run_takes_the_room_that_was_counted(tmp_path: Path, tiny_model: GPT) -> None:
    """The files of the checkpoints are as large as `check_room` takes them to be."""
    optimizer = torch.optim.AdamW(tiny_model.parameters())
    sum(p.sum() for p in tiny_model.parameters()).backward()
    optimizer.step()
    state = {"state_dict": tiny_model.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    path = tmp_path / "last.ckpt"
    for _ in range(2):
        DurableIO().save_checkpoint(state, path)
    assert previous_of(path).stat().st_size == pytest.approx(12 * tiny_model.n_parameters, rel=0.02)


def test_a_store_that_a_killed_run_left_is_removed_after_a_day(tmp_path: Path) -> None:
    times = {"a": 0, "a.0123": 100_000, "a.4567": 80_000, "b.89ab": 100_000}
    for name, age in times.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokens.bin").touch()
        for path in (tmp_path / name / "tokens.bin", tmp_path / name):
            os.utime(path, (time.time() - age,) * 2)
    os.utime(tmp_path / "b.89ab" / "tokens.bin")  # being written
    (tmp_path / "groups-0.npy").touch()
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.4567", "b.89ab", "groups-0.npy"]
