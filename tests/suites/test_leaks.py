"""Items of packages from their output files, and figures without the leaked ones."""

import json
from pathlib import Path

import pytest

from instruct_lit.evaluation.leaks import Leak
from instruct_lit.suites import alpaca_eval, helm, openai_evals
from instruct_lit.suites.leaks import figure_without, leaks_of, print_leaks


def test_verdicts_of_alpaca_eval(tmp_path: Path) -> None:
    rows = [
        {"instruction": "one", "preference": 2.0},
        {"instruction": "two", "preference": 1.0},
        {"instruction": "three", "preference": None},
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    found = alpaca_eval.items_of(tmp_path, "alpaca_eval", "win_rate")
    assert found == [("one", 1.0), ("two", 0.0), ("three", 0.5)]


def test_samples_of_openai_evals(tmp_path: Path) -> None:
    events = [
        {"spec": {}},
        {"sample_id": "a.0", "type": "sampling", "data": {"prompt": "User: one", "sampled": ["x"]}},
        {"sample_id": "a.0", "type": "match", "data": {"correct": True}},
        {"sample_id": "a.1", "type": "sampling", "data": {"prompt": "User: two", "sampled": ["x"]}},
        {"sample_id": "a.1", "type": "metrics", "data": {"choice": "C"}},
        {"sample_id": "a.1", "type": "sampling", "data": {"prompt": "the judge's prompt", "sampled": ["x"]}},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, events)) + "\n")
    assert openai_evals.items_of(tmp_path, "a", "accuracy") == [("User: one", 1.0), ("User: two", None)]


def test_test_instances_of_helm(tmp_path: Path) -> None:
    folder = (
        tmp_path
        / "benchmark_output"
        / "runs"
        / "mine"
        / "mmlu:subject=anatomy,method=multiple_choice_joint,model=local_x"
    )
    folder.mkdir(parents=True)
    states = [{"instance": {"id": f"id{n}", "input": {"text": f"question {n}"}}} for n in range(3)]
    stats = [
        {"instance_id": f"id{n}", "stats": [{"name": {"name": name, "split": split}, "mean": value}]}
        for n, name, split, value in (
            (0, "exact_match", "valid", 1.0),
            (1, "exact_match", "test", 1.0),
            (2, "exact_match", "test", 0.0),
        )
    ]
    stats.append(
        {
            "instance_id": "id1",
            "perturbation": {"name": "typos"},
            "stats": [{"name": {"name": "exact_match", "split": "test"}, "mean": 0.0}],
        }
    )
    (folder / "scenario_state.json").write_text(json.dumps({"request_states": states}))
    (folder / "per_instance_stats.json").write_text(json.dumps(stats))
    found = helm.items_of(tmp_path, "mmlu:subject=anatomy", "exact_match")
    assert found == [("question 1", 1.0), ("question 2", 0.0)]


def test_the_figure_without_leaked_items(capsys: pytest.CaptureFixture[str]) -> None:
    texts = {
        "a": ["Name the capital of France.", "Add one and two.", "Spell cat."],
        "b": ["Add one and two."],
    }
    leaks = leaks_of(["Say it.", "name the capital of France", "Add one and two"], texts, near=False)
    assert {name: {n: (leak.train, leak.kind) for n, leak in found.items()} for name, found in leaks.items()} == {
        "a": {0: (1, "exact"), 1: (2, "exact")}, "b": {0: (2, "exact")},
    }  # fmt: skip
    found = figure_without(leaks["a"], enumerate([1.0, 0.0, 0.5]))
    assert found["n"] == 2 and found["value_without"] == 0.5 and [leak["item"] for leak in found["items"]] == [0, 1]
    assert figure_without(leaks["b"], enumerate([None]))["value_without"] is None  # none is left
    assert figure_without({}, enumerate([None, 1.0]))["value_without"] is None  # not every value is known
    print_leaks("run", leaks)
    assert "2 items of a are in the training data or close to it of run (exact 2)" in capsys.readouterr().out
    print_leaks("run", {})
    assert "no item was in the training data of run" in capsys.readouterr().out


def test_a_task_s_own_aggregation_is_used() -> None:
    found = figure_without({0: Leak(9, 4, "near", 0.9)}, enumerate([3.0, 2.0, 1.0]), max)
    assert found == {
        "n": 1,
        "value_without": 2.0,
        "items": [{"item": 0, "train": 4, "kind": "near", "similarity": 0.9}],
    }
