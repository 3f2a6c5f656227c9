"""Every logger gets curves, configuration, sample answers, the plot and the final metrics, each in its own form."""

import csv
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from instruct_lit.reports.loggers import BEST, Csv
from tests.commands import Command

RUN = ("trainer.max_epochs=1", "evaluate_base=false", "hydra.run.dir=run", "name=mine", "optimizer.betas=[0.9,0.95]")


@pytest.fixture
def logged(command: Command, small: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    def run(loggers: str, *overrides: str, **environment: str) -> Path:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        command("train", *small, *RUN, f"logger={loggers}", *overrides, cwd=tmp_path)
        return tmp_path

    return run


def test_tensorboard_has_the_curves_of_the_training_and_compares_settings_that_matter(small_run: Path) -> None:
    events = EventAccumulator(str(small_run / "tensorboard"), {"tensors": 0}).Reload()
    last = {tag for tag in events.Tags()["scalars"] if tag.startswith(BEST)}
    curves = [tag for tag in events.Tags()["scalars"] if tag not in last]
    assert {tag.partition("/")[0] for tag in curves} == {"train", "val"} and "train/lr/pg1" in curves
    assert all(len(events.Scalars(tag)) > 1 for tag in curves), "no chart of one point"
    rows = [json.loads(line) for line in (small_run / "history.jsonl").read_text().splitlines()]
    for name in ("train/loss", "val/loss"):  # none after fitting
        assert [point.step for point in events.Scalars(name)] == [row["step"] for row in rows if name in row]
    assert [point.step for point in events.Scalars("train/lr/pg1")] == [
        row["step"] for row in rows if "train/loss" in row
    ]
    content = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    metrics = {
        info.display_name: info.name.tag for info in HParamsPluginData.FromString(content).experiment.metric_infos
    }
    assert list(metrics) == ["val/loss", "val/response_loss", "test/loss", "test/exact_match"]
    final = json.loads((small_run / "metrics.json").read_text())
    for name, tag in metrics.items():
        assert [point.value for point in events.Scalars(tag)] == pytest.approx([final[name]])
    data = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    shown = HParamsPluginData.FromString(data).session_start_info.hparams
    assert shown["optimizer.lr"].number_value > 0 and shown["data.mask_prompt"].string_value == "True"
    assert shown["model.n_layers"].number_value == 2 and shown["seed"].number_value == 123
    assert not [key for key in shown if "_target_" in key or "path" in key or "dir" in key]
    assert "test/loss" in str(events.Tensors("results/text_summary")[0]) and events.Tags()["images"] == [
        f"{BEST}plot of the loss"
    ]


@pytest.mark.slow
def test_csv_has_the_configuration_and_all_metrics(logged: Callable) -> None:
    folder = logged("[csv,tensorboard]") / "run"
    assert "optimizer.betas:" in (folder / "csv" / "hparams.yaml").read_text()
    header, *rows = (folder / "csv" / "metrics.csv").read_text().splitlines()
    assert {"train/loss", "val/loss", "test/exact_match"} <= set(header.split(",")) and len(rows) > 5
    assert (folder / "tensorboard").is_dir() and "<title>instruct-lit: mine" in (folder / "report.html").read_text()


def test_mlflow_in_files(logged: Callable) -> None:
    pytest.importorskip("mlflow")
    store = "logger.mlflow.tracking_uri=file:mlruns"
    folder = logged("mlflow", store, MLFLOW_ALLOW_FILE_STORE="true", GIT_PYTHON_REFRESH="quiet") / "mlruns"
    (run,) = (path.parent for path in folder.glob("*/*/meta.yaml") if path.parent.parent.name != "models")
    assert "run_name: mine" in (run / "meta.yaml").read_text()
    assert (run / "params" / "optimizer.betas").read_text() == "[0.9, 0.95]"
    assert len((run / "metrics" / "train" / "loss").read_text().splitlines()) == 5
    assert (run / "metrics" / "test" / "exact_match").is_file() and (run / "artifacts" / "loss.png").is_file()
    assert "**Answer**" in next((run / "artifacts" / "answers" / "0").glob("*.md")).read_text()


def test_wandb_offline(logged: Callable) -> None:
    pytest.importorskip("wandb")
    folder = logged("wandb", "logger.wandb.offline=true", WANDB_SILENT="true") / "run" / "wandb"
    (run,) = folder.glob("offline-run-*")
    records = next(run.glob("*.wandb")).read_bytes()
    assert b"optimizer.betas" in records and b"mine" in records and b"test/exact_match" in records
    assert records.count(b"train/loss") >= 5
    assert list((run / "files" / "media").rglob("*.png")) and list((run / "files" / "media").rglob("*.json"))


def test_trackio_on_this_machine(logged: Callable, tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    import sqlite3

    folder = logged("trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    (database,) = (folder / "trackio").glob("instruct-lit.db")
    with sqlite3.connect(database) as connection:
        rows = [json.loads(row[0]) for row in connection.execute("select metrics from metrics where run_name='mine'")]
        config: Any = connection.execute("select config from configs where run_name='mine'").fetchone()
    assert sum("train/loss" in row for row in rows) == 5 and any("test/exact_match" in row for row in rows)
    assert any("answers/0" in row for row in rows) and "optimizer.betas" in str(config[0])


def test_comet_offline(logged: Callable) -> None:
    pytest.importorskip("comet_ml")
    (archive,) = (logged("comet", "logger.comet.online=false") / "run").glob("*.zip")
    with zipfile.ZipFile(archive) as files:
        records = [json.loads(line) for line in files.read("messages.json").splitlines()]
    found = {kind: [r["payload"] for r in records if r["type"] == kind] for kind in ("metric_msg", "file_upload")}
    points = [(p["metric"]["metricName"], p["metric"].get("step")) for p in found["metric_msg"]]
    assert [step for name, step in points if name == "train/loss"] == [1, 2, 3, 4, 5]
    assert ("test/exact_match", 5) in points
    assert "optimizer.betas" in str([record for record in records if record["type"] == "parameter_msg"])
    assert {"text-sample", "visualization"} <= {upload["upload_type"] for upload in found["file_upload"]}


def test_a_csv_file_goes_on_where_its_run_is_resumed(tmp_path: Path) -> None:
    """Lightning's logger deletes it, with a warning that is an error here."""

    def logged(steps: range, last: int, **more: float) -> None:
        logger = Csv(str(tmp_path), name="csv", version="", flush_logs_every_n_steps=1)
        logger.write([row for row in logger.rows() if int(row["step"]) <= last])
        for step in steps:
            logger.log_metrics({"train/loss": 10.0 - step, **more}, step)

    def rows() -> list[tuple[str, str]]:
        with (tmp_path / "csv" / "metrics.csv").open(newline="") as file:
            return [(row["step"], row["train/loss"]) for row in csv.DictReader(file)]

    logged(range(4), -1)
    assert rows() == [("0", "10.0"), ("1", "9.0"), ("2", "8.0"), ("3", "7.0")]
    Csv(str(tmp_path), name="csv", version="").log_hyperparams({"a": 1})  # of a run that is then refused
    assert len(rows()) == 4
    logged(range(3, 5), 2, other=1.0)  # resumed after step 2, with a column more
    assert rows() == [("0", "10.0"), ("1", "9.0"), ("2", "8.0"), ("3", "7.0"), ("4", "6.0")]
    with (tmp_path / "csv" / "metrics.csv").open("a") as file:
        file.write("1.0,")  # of a row, which a kill has cut
    logged(range(0), 9)
    assert len(rows()) == 5
    logged(range(1), -1)
    assert rows() == [("0", "10.0")]  # a run that starts anew
