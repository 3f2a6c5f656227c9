"""Means with their errors, the file and the table."""

import json
from pathlib import Path

import pytest

from instruct_lit.suites.results import FILE, print_table, records_of, write_reports
from instruct_lit.suites.suite import Figure, Report, mean_of

TASKS = {"a": Figure("acc", 0.5, 0.1, 30, 0.25, 5), "b": Figure("acc", 0.7, 0.2, 10, 0.5, 5)}


def test_the_mean_over_items_weighs_tasks_by_their_size() -> None:
    score = mean_of(list(TASKS.values()), "items")
    assert (score.metric, score.n, score.n_shot) == ("acc", 40, 5)
    assert score.value == pytest.approx(0.55) and score.chance == pytest.approx(0.3125)
    assert score.stderr == pytest.approx((0.075**2 + 0.05**2) ** 0.5)


def test_unlike_metrics_have_no_mean() -> None:
    shares = [TASKS["a"], Figure("exact_match", 0.7, 0.2, 10, 0.0), Figure("acc_norm", 0.9, 0.1, 10, 0.2)]
    assert mean_of(shares, "tasks").value == pytest.approx(0.7)
    score = mean_of([*shares, Figure("mcc", 0.1, 0.1, 10, 0.0)], "tasks")
    assert (score.metric, score.value, score.stderr, score.n) == ("unlike metrics", None, None, 60)


def test_the_mean_over_tasks_weighs_them_alike_and_unknown_parts_stay_unknown() -> None:
    score = mean_of([TASKS["a"], Figure("acc_norm", 0.7, None, 10)], "tasks")
    assert score.metric == "mean" and score.value == pytest.approx(0.6)
    assert score.stderr is None and score.chance is None and score.n_shot is None


def test_the_file_has_every_figure_and_the_table_every_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    reports = [
        Report("runs/x", label, template, mean_of(list(TASKS.values()), "items"), {}, TASKS, {"n_prompts_cut": 3})
        for label, template in (("x", "on"), ("x", "off"), ("x before", "off"))
    ]
    write_reports(tmp_path / FILE, "mmlu", reports, limit=4)
    written = json.loads((tmp_path / FILE).read_text())
    assert written["suite"] == "mmlu" and written["limit"] == 4 and "torch" in written["versions"]
    assert [run["template"] for run in written["runs"]] == ["on", "off", "off"]
    assert written["runs"][0]["tasks"]["b"] == {
        "metric": "acc", "value": 0.7, "stderr": 0.2, "n": 10, "chance": 0.5, "n_shot": 5, "version": None, "others": {},
        "majority": None,
    }  # fmt: skip
    print_table("mmlu", reports, {"wnli": "no such folder"})
    shown = capsys.readouterr().out
    assert "x before, template off" in shown and "0.700 ± 0.200" in shown and "chance level" in shown
    assert "skipped, since their data are missing: wnli" in shown
    unlike = {**TASKS, "cola": Figure("mcc", 0.1, 0.1, 9, 0.0, majority=0.0)}
    print_table("glue", [Report("runs/x", "x", "off", mean_of(list(unlike.values()), "tasks"), {}, unlike)])
    mixed = capsys.readouterr().out
    assert "no mean" in mixed and "chance, majority" in mixed and "0.000, 0.000" in mixed
    assert records_of(reports)[1] == {
        "model": "x", "template": "on", "task": "b", "metric": "acc", "value": 0.7, "stderr": 0.2, "n": 10,
        "n_shot": 5, "chance": 0.5, "majority": None,
    }  # fmt: skip
    assert "x, template on: 3 prompts were longer than the context and truncated from the left" in shown


@pytest.mark.parametrize(("width", "n_tables"), [(130, 1), (120, 2), (80, 4)])
def test_a_narrow_terminal_keeps_every_standard_error(
    width: int, n_tables: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    tasks = {name: Figure("prompt_level_strict_acc", 0.333, 0.012, 541, 0.0, 5) for name in ("ifeval", "gsm8k")}
    reports = [
        Report(f"runs/{label}", label, "off", mean_of(list(tasks.values()), "tasks"), {}, tasks)
        for label in ("first", "second", "third", "fourth")
    ]
    print_table("mix", reports)
    shown = capsys.readouterr().out
    assert shown.count("0.333 ± 0.012") == 8 and shown.count("0.333 ± 0.008") == 4
    assert shown.count("chance level") == n_tables and max(map(len, shown.splitlines())) <= width
