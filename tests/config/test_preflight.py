"""What a run writes at its end is tried before its first step."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger

from instruct_lit.config.preflight import Preflight
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.gpt import GPT
from instruct_lit.errors import ConfigError
from instruct_lit.hf.files import load_hf
from instruct_lit.hf.tokenizer import load_tokenizer

OWN = Template("own", "Do: {{ instruction }}\nAnswer: {{ response }}")


def run_of(folder: Path, model: Any, tokenizer: Any, loggers: Any = ()) -> Any:
    """What `Preflight` reads of a run."""
    trainer = SimpleNamespace(is_global_zero=True, loggers=list(loggers), callbacks=[])
    settings = SimpleNamespace(sampling=SamplingSettings())
    config = SimpleNamespace(bundle_dtype=None, adapter=SimpleNamespace(merge=True), model={})
    parts = SimpleNamespace(adapter=None, config=config)
    return SimpleNamespace(
        run_dir=folder, trainer=trainer, settings=settings, about={}, model=model, tokenizer=tokenizer, template=OWN,
        parts=parts,
    )  # fmt: skip


def test_nothing_is_left_and_each_logger_has_a_row(tmp_path: Path, tiny_model: GPT) -> None:
    for name in (".bundle.abcd1234/new", ".preflight.abcd1234"):  # of a killed run
        (tmp_path / name).mkdir(parents=True)
    logger = CSVLogger(str(tmp_path / "csv"))
    Preflight().on_prepared(run_of(tmp_path, tiny_model, GPT2Tokenizer(), [logger]))
    assert [path.name for path in tmp_path.iterdir()] == ["csv"]
    assert logger.experiment.metrics == [{"epoch": 0.0, "step": 0}]


def test_a_base_whose_generation_defaults_do_not_go_with_greedy(llama_directory: Path, tmp_path: Path) -> None:
    base = shutil.copytree(llama_directory, tmp_path / "base")
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.9, "eos_token_id": 1}))
    (tmp_path / "run").mkdir()
    Preflight().on_prepared(run_of(tmp_path / "run", load_hf(str(base)), load_tokenizer(str(base))))
    assert not list((tmp_path / "run").iterdir())


def test_what_cannot_be_written_is_named_before_training(
    tmp_path: Path, tiny_model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(CSVLogger):
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


def test_a_disk_without_room_is_named(tmp_path: Path, tiny_model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ConfigError, match=r"paths.outputs: .* has 0.00 GB free, and checkpoints and bundle take 0.01"):
        Preflight().on_prepared(run_of(tmp_path, tiny_model, GPT2Tokenizer()))
