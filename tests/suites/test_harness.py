"""Figures from the harness's results: filters, kinds of instructions, chance levels."""

from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest

from instruct_lit.core.generation.responses import write_jsonl
from instruct_lit.evaluation.forgetting import item_change
from instruct_lit.suites.harness import by_instruction, chance, figure_of, item_values, majority


def generating(*metrics: str) -> Any:
    return SimpleNamespace(
        OUTPUT_TYPE="generate_until", aggregation=lambda: dict.fromkeys(metrics), higher_is_better=dict
    )


def test_the_first_filter_gives_the_figure_and_the_others_are_named() -> None:
    values = {
        "alias": "gsm8k", "exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": 0.05,
        "exact_match,flexible-extract": 0.5, "exact_match_stderr,flexible-extract": 0.06,
    }  # fmt: skip
    results = {
        "results": {"gsm8k": values},
        "n-samples": {"gsm8k": {"effective": 75}},
        "n-shot": {"gsm8k": 5},
        "versions": {},
    }
    figure = figure_of("gsm8k", generating("exact_match"), results)
    assert (figure.metric, figure.value, figure.stderr, figure.n, figure.n_shot) == ("exact_match", 0.25, 0.05, 75, 5)
    assert figure.others == {"exact_match (flexible-extract)": 0.5} and figure.chance == 0


def test_instructions_are_counted_by_kind() -> None:
    samples = [
        {
            "doc": {"instruction_id_list": ["keywords:existence", "punctuation:no_comma"]},
            "inst_level_strict_acc": [False, True], "inst_level_loose_acc": [True, True],
        },
        {
            "doc": {"instruction_id_list": ["keywords:frequency"]},
            "inst_level_strict_acc": [False], "inst_level_loose_acc": [False],
        },
    ]  # fmt: skip
    found = by_instruction(samples)
    assert found["keywords"] == {"n": 2, "strict": 0, "loose": 0.5}
    assert found["punctuation"] == found["punctuation:no_comma"] == {"n": 1, "strict": 1, "loose": 1}
    assert list(found) == [
        "keywords",
        "keywords:existence",
        "keywords:frequency",
        "punctuation",
        "punctuation:no_comma",
    ]
    assert by_instruction([{"doc": {"question": "?"}}]) == {}


@pytest.mark.parametrize(
    ("kind", "level"), [("generate_until", 0.0), ("loglikelihood", None), ("loglikelihood_rolling", None)]
)
def test_only_choices_have_a_chance_level_above_zero(kind: str, level: float | None) -> None:
    task: Any = SimpleNamespace(OUTPUT_TYPE=kind, higher_is_better=dict)
    assert chance(task, "exact_match") == level and chance(task, "word_perplexity") is None


def test_items_of_which_less_is_better_have_their_metric_in_the_name(tmp_path: Path) -> None:
    """The verdict of `forgetting` follows: the task knows its direction, the name of the metric where it does not."""
    report: Any = SimpleNamespace(tasks={})
    tasks: Any = {}
    for name, metric, directions in (
        ("good", "score", {"score": True}),
        ("toxic", "score", {"score": False}),
        ("translation", "edit_distance", {}),
        ("own", "points", {"points": None}),
    ):
        report.tasks[name] = SimpleNamespace(metric=metric, value=0.5)
        tasks[name] = SimpleNamespace(higher_is_better=lambda directions=directions: directions)
        rows = [{"filter": "none", metric: value, "doc": "a line\u2028separator"} for value in (0, 1)]
        write_jsonl(tmp_path / f"samples_{name}.jsonl", rows)
    found = item_values(tmp_path, report, tasks)
    assert list(found) == ["good", "toxic/score", "translation/edit_distance", "own"]
    changes = [item_change(f"benchmark/{name}", [1.0] * 40, [0.0] * 20 + [1.0] * 20) for name in found]
    assert [change["verdict"] for change in changes] == ["gained", "lost", "lost", "gained"]


def choices(labels: list[int], texts: list[tuple[str, ...]]) -> SimpleNamespace:
    """A task with a request for each choice of each item."""
    instances = [
        SimpleNamespace(doc_id=n, doc={"label": labels[n]}, args=("", t)) for n in range(len(labels)) for t in texts[n]
    ]
    return SimpleNamespace(
        OUTPUT_TYPE="multiple_choice",
        instances=instances,
        process_results=lambda doc, results: {
            "acc": float(max(range(len(results)), key=lambda i: results[i]) == doc["label"])
        },
        aggregation=lambda: {"acc": fmean},
        higher_is_better=lambda: {"acc": True},
    )


def test_the_majority_class_is_that_of_equal_choices() -> None:
    classes = choices([0, 1, 1, 1, 0], [(" no", " yes")] * 5)
    assert majority(classes, "acc") == 0.6  # type: ignore[arg-type]
    assert majority(choices([0, 0], [(" a", " b"), (" c", " d")]), "acc") is None  # type: ignore[arg-type]
    assert majority(SimpleNamespace(OUTPUT_TYPE="generate_until"), "f1") is None  # type: ignore[arg-type]


def test_items_of_one_passage_have_the_error_of_clusters() -> None:
    values = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    results = {
        "results": {"squad": {"f1,none": 0.5, "f1_stderr,none": 0.19}},
        "n-samples": {"squad": {"effective": 8}},
        "n-shot": {},
        "versions": {},
    }
    task = generating("f1")
    samples = [
        {"doc_id": n, "doc": {"context": f"text {n // 4}"}, "filter": "none", "f1": v} for n, v in enumerate(values)
    ]
    figure = figure_of("squad", task, results, samples)  # type: ignore[arg-type]
    # Two passages, each 2 away from its share of the sum, and the factor for few clusters.
    assert figure.stderr == pytest.approx((2 * 2.0**2) ** 0.5 / 8 * 2**0.5)
    for sample in samples:
        sample["doc"] = {"context": f"own {sample['doc_id']}"}
    assert figure_of("squad", task, results, samples).stderr == 0.19  # type: ignore[arg-type]
