"""Sweeps as a person starts them: grids, failures, continuation, Optuna with pruning, several at a time."""

import json
import os
import re
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LIGHT = ("metrics=[exact_match]", "by=[]", "hydra.sweep.dir=sweep")


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Files of answers: scoring them is the lightest command that can be swept."""
    for name, response in (("good", "yes"), ("bad", "no")):
        record = {"instruction": "a", "input": "", "output": "yes", "response": response}
        (tmp_path / f"{name}.json").write_text(json.dumps([record]))
    return tmp_path


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "trial.json").read_text())


def wait_for_rows(history: Path, n: int) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (history.exists() and len(history.read_text().splitlines()) >= n):
        time.sleep(0.01)


@pytest.mark.slow
def test_trials_are_composed_from_the_files_of_the_user_in_any_folder(command: Callable, answers: Path) -> None:
    folder = answers / "o'brien's sweep é"
    (folder / "own").mkdir(parents=True)
    (folder / "own" / "mine.yaml").write_text("defaults: [evaluate, _self_]\nseed: 77\n")
    swept = ("responses=../bad.json,../good.json", "metrics=[exact_match]", "by=[]", "hydra.sweep.dir=sweep")
    command("evaluate", "-m", "--config-dir=own", "--config-name=mine", *swept, cwd=folder)
    records = [record_of(folder / "sweep" / str(number)) for number in range(2)]
    assert [record["value"] for record in records] == [0.0, 1.0]
    assert "seed: 77" in (folder / "sweep" / "0" / ".hydra" / "config.yaml").read_text()
    best = json.loads((folder / "sweep" / "trials.json").read_text())["trials"][0]
    assert {f"--config-dir={folder / 'own'}", "--config-name=mine"} <= set(shlex.split(best["command"]))


@pytest.mark.slow
def test_a_failing_trial_is_recorded_the_sweep_goes_on_nothing_runs_twice_and_a_report_is_made_again(
    command: Callable, answers: Path
) -> None:
    swept = ("responses=bad.json,missing.json,good.json", *LIGHT)
    done = command("evaluate", "-m", *swept, cwd=answers)
    records = [record_of(answers / "sweep" / str(n)) for n in range(3)]
    assert [r["status"] for r in records] == ["completed", "failed", "completed"]
    assert [r["value"] for r in records] == [0.0, None, 1.0]
    assert records[1]["reason"] == "responses=missing.json: no such file"
    assert "trial 1 (responses=missing.json): failed: responses=missing.json: no such file" in done.stdout
    assert "report of the sweep: sweep/report.html" in done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    before = (answers / "sweep" / "0" / "trial.json").stat().st_mtime_ns
    (answers / "sweep" / "2" / "trial.json").unlink()  # as if it had not been reached
    again = command("evaluate", "-m", *swept, cwd=answers)
    assert "trial 0 (responses=bad.json): result 0, already finished" in again.stdout and "trial 2" in again.stdout
    assert record_of(answers / "sweep" / "2")["value"] == 1.0
    assert (answers / "sweep" / "0" / "trial.json").stat().st_mtime_ns == before
    other = command("evaluate", "-m", "responses=good.json,bad.json", *LIGHT, cwd=answers, status=2)
    assert "holds a trial with" in other.stderr and "choose another hydra.sweep.dir" in other.stderr
    (answers / "sweep" / "report.html").unlink()
    assert "sweep/report.html" in command("report", "sweep", cwd=answers).stdout
    assert "responses" in (answers / "sweep" / "report.html").read_text()


def test_a_sweep_in_which_every_trial_failed_fails(command: Callable, answers: Path) -> None:
    done = command("evaluate", "-m", "responses=missing.json,nowhere.json", *LIGHT, cwd=answers, status=2)
    message = "error: sweep: every trial of the sweep failed, the first one with: responses=missing.json: no such file"
    assert message in done.stderr and "Traceback" not in done.stderr
    assert "report of the sweep: sweep/report.html" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [("joblib", "hydra.launcher.n_jobs=2"), ("submitit_local",)], ids=lambda of: of[0])
def test_launchers_run_trials_side_by_side(command: Callable, answers: Path, launcher: tuple[str, ...]) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher[0].removesuffix('_local')}_launcher")
    name, *settings = launcher
    try:
        command(
            "evaluate", "-m", "responses=good.json,bad.json", f"hydra/launcher={name}", *settings, *LIGHT, cwd=answers
        )
    except AssertionError as error:
        if "has not produced any output" in str(error):
            pytest.skip("submitit's job looked for its folder before submitit made it; it does on a busy machine")
        raise
    assert [record_of(answers / "sweep" / str(n))["value"] for n in range(2)] == [1.0, 0.0]


def test_what_the_report_command_cannot_do_is_refused(command: Callable, answers: Path) -> None:
    assert "not a sweep, no <number>/trial.json in it" in command("report", ".", cwd=answers, status=2).stderr
    assert "folder=nowhere: no such folder" in command("report", "nowhere", cwd=answers, status=2).stderr
    assert "direction=up: allowed are" in command("report", ".", "direction=up", cwd=answers, status=2).stderr


@pytest.mark.slow
def test_optuna_says_what_is_wrong(command: Callable, small: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    for overrides, message in (
        (["hydra.sweeper.sampler=grid"], "hydra.sweeper.sampler=grid: allowed are tpe, random"),
        (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: must be at least 1"),
    ):
        done = command("train", *small, "sweep=optuna", *overrides, cwd=tmp_path, status=2)
        assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_optuna_prunes_records_failures_and_goes_on(command: Callable, small: tuple[str, ...], tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    search = (
        *small, "evaluate_base=false", "n_test_responses=2", "trainer.max_epochs=4", "sweep=optuna",
        "hydra.sweeper.n_startup_trials=2", "hydra.sweeper.study_name=mine", "hydra.sweeper.params={}",
        "optimizer.lr=tag(log,interval(1e-8,1e-2))", "model.dropout=0.0,0.1,2.0",
    )  # fmt: skip
    command("train", *search, "hydra.sweeper.n_trials=4", cwd=tmp_path)
    folder = tmp_path / "outputs" / "multirun" / "mine"
    command("train", *search, "hydra.sweeper.n_trials=12", "launcher=joblib", cwd=tmp_path)
    study = optuna.load_study(study_name="mine", storage=f"sqlite:///{folder / 'study.db'}")
    records = {t.number: record_of(folder / str(t.number)) for t in study.trials}
    assert len(study.trials) == 12
    for found in study.trials:
        name = {"COMPLETE": "completed", "PRUNED": "pruned", "FAIL": "failed"}[found.state.name]
        assert records[found.number]["status"] == name
        if name == "failed":
            assert "model.dropout=2.0: must be below 1" in found.user_attrs["reason"]
        if name == "pruned":
            assert "other trials of the study were better at this step" in records[found.number]["reason"]
            assert len(found.intermediate_values) >= 1
    assert {record["status"] for record in records.values()} == {"completed", "pruned", "failed"}
    assert (
        "n_startup_trials: 2" in (folder / "0" / ".hydra" / "config.yaml").read_text()
    )  # the sweeper's, not the default
    page = (folder / "report.html").read_text()
    assert "Parallel coordinates" in page and "Importance" in page


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_where_it_was(
    start: Callable, command: Callable, small: tuple[str, ...], small_run: Path, tmp_path: Path
) -> None:
    """Ctrl-C in the second trial; the same command finishes it, and it is the trial that it would have been."""
    search = [*small, "seed=7,123", "trainer.max_epochs=2", "hydra.sweep.dir=sweep"]
    process = start("train", "-m", *search, cwd=tmp_path)
    wait_for_rows(tmp_path / "sweep" / "1" / "history.jsonl", 4)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    assert record_of(tmp_path / "sweep" / "1")["status"] == "interrupted"
    command("train", "-m", *search, cwd=tmp_path)
    alone = json.loads((small_run / "metrics.json").read_text())
    swept = json.loads((tmp_path / "sweep" / "1" / "metrics.json").read_text())
    assert swept["val/loss"] == pytest.approx(alone["val/loss"], rel=1e-6)
    assert record_of(tmp_path / "sweep" / "1")["status"] == "completed"


@pytest.mark.slow
def test_a_killed_trial_does_not_end_the_sweep(start: Callable, small: tuple[str, ...], tmp_path: Path) -> None:
    process = start("train", "-m", *small, "seed=1,2", "trainer.max_epochs=2", "evaluate_base=false", "hydra.sweep.dir=sweep",
                    cwd=tmp_path)  # fmt: skip
    wait_for_rows(tmp_path / "sweep" / "0" / "history.jsonl", 1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    assert process.wait(200) == 0
    assert record_of(tmp_path / "sweep" / "0")["reason"].startswith("killed by SIGKILL")
    assert record_of(tmp_path / "sweep" / "1")["status"] == "completed"


@pytest.mark.slow
def test_a_trial_that_diverges_is_recorded_with_its_reason_and_the_sweep_goes_on(
    command: Callable, small: tuple[str, ...], tmp_path: Path
) -> None:
    done = command("train", "-m", *small, "evaluate_base=false", "n_test_responses=2", "trainer.max_epochs=1",
                   "optimizer.lr=1e30,1e-3", "hydra.sweep.dir=sweep", cwd=tmp_path)  # fmt: skip
    first, second = (record_of(tmp_path / "sweep" / n) for n in "01")
    assert first["status"] == "failed" and first["value"] is None
    assert re.match(r"(train|val)/loss is (nan|inf) (at|after) step \d+", first["reason"])
    assert "lower optimizer.lr" in first["reason"]
    assert second["status"] == "completed" and second["value"] > 0
    assert "trial 0 (optimizer.lr=1e+30): failed: " in done.stdout
    assert first["reason"][:20] in (tmp_path / "sweep" / "report.html").read_text()


@pytest.mark.slow
def test_several_sweeps_work_on_one_study(start: Callable, small: tuple[str, ...], tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    search = [*small, "evaluate_base=false", "n_test_responses=2", "trainer.max_epochs=1", "sweep=optuna",
              "hydra.sweeper.study_name=shared", "hydra.sweeper.params={}", "optimizer.lr=interval(1e-4,1e-2)",
              f"hydra.sweeper.storage=sqlite:///{tmp_path}/study.db"]  # fmt: skip
    optuna.create_study(study_name="shared", storage=f"sqlite:///{tmp_path}/study.db")
    workers = [
        start("train", *search, "hydra.sweeper.n_trials=4", cwd=tmp_path, log=tmp_path / str(n)) for n in range(2)
    ]
    assert [worker.wait(280) for worker in workers] == [0, 0], (tmp_path / "0.err").read_text()[-3000:]
    trials = optuna.load_study(study_name="shared", storage=f"sqlite:///{tmp_path}/study.db").trials
    assert 4 <= len(trials) <= 5  # both may ask for the last one
    assert {t.state.name for t in trials} == {"COMPLETE"}
    (name,) = {t.user_attrs["worker"].partition("/")[0] for t in trials}  # of the folder, which both work in
    assert {t.user_attrs["worker"] for t in trials} == {f"{name}/0", f"{name}/1"}
    assert len({t.params["optimizer.lr"] for t in trials}) == len(trials)
    folder = tmp_path / "outputs" / "multirun" / "shared"
    assert [record_of(folder / str(t.number))["value"] for t in trials] == [t.value for t in trials]
