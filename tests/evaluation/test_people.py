"""People's labels: published agreement figures, those of scikit-learn, rates and predictors by hand."""

import json
import math
from pathlib import Path
from random import Random

import pytest

from instruct_lit.errors import DataError
from instruct_lit.evaluation.people import cohen, krippendorff, people, read_labels


def units(*observers: str) -> list[list[str]]:
    columns = zip(*(observer.split() for observer in observers), strict=True)
    return [[label for label in column if label != "."] for column in columns]


def test_krippendorffs_own_worked_examples() -> None:
    """ "Computing Krippendorff's Alpha-Reliability" (2011): two observers of binary and of nominal data, four with gaps."""
    assert krippendorff(units("0 1 0 0 0 0 0 0 1 0", "1 1 1 0 0 1 0 0 0 0")) == pytest.approx(0.095, abs=5e-4)
    assert krippendorff(units("a a b b d c c c e d d a", "b a b b b c c c e d d d")) == pytest.approx(0.692, abs=5e-4)
    four = units(
        "1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."
    )
    assert krippendorff(four) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff([["a", "a"], ["a", "a"]]) is None and krippendorff([["a"], ["b"]]) is None


def test_cohens_kappa_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = Random(0)
    for n in (3, 20, 200):
        a, b = (random.choices(["right", "wrong", "mine"], (5, 2, 1), k=n) for _ in range(2))
        assert cohen(a, b) == pytest.approx(metrics.cohen_kappa_score(a, b))
    assert cohen(["right"], ["right"]) is None


def test_labels_are_read_and_bad_ones_refused(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"

    def written(*records: object) -> Path:
        file.write_text("\n".join(map(json.dumps, records)))
        return file

    rows = [{"id": i, "instruction": "q", "input": "", "response": "a"} for i in (3, 4)]
    first = {"id": 3, "label": "wrong", "reviewer": "ann"}
    labels = [first, {**first, "label": "right", "note": "x"}, {"id": 4, "label": "rude"}]
    assert read_labels(written(*labels), rows) == {3: {"ann": "right"}, 4: {"reviewer": "rude"}}
    table = tmp_path / "labels.csv"  # of a spreadsheet
    table.write_text("id,label,reviewer\n3,right,ann\n4,wrong,ann\n")
    assert read_labels(table, rows) == {3: {"ann": "right"}, 4: {"ann": "wrong"}}
    # Of another model's response to the same instruction, of another file, and one that is withdrawn.
    others = [
        {**first, "reviewer": "bob", "response": "b"},
        {**first, "id": 9, "response": "a"},
        {"id": 4, "label": None},
    ]
    assert read_labels(written(*labels, *others), rows) == {3: {"ann": "right"}}
    for record, message in (
        ({"id": 3}, "line 2: not a label"),
        ({"id": 3, "label": " "}, "line 2: not a label"),
        (["right"], "line 2: not a label"),
        ({"id": 9, "label": "right"}, "line 2: no response has the id 9"),
        ({"id": [], "label": "right"}, "line 2: not a label"),
    ):
        with pytest.raises(DataError, match=message):
            read_labels(written(first, record), rows)
    with pytest.raises(DataError, match="no labels of these responses"):
        read_labels(written(), rows)


def test_a_line_that_a_crash_has_cut_off_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text('{"id": 3, "lab\n{"id": 3, "label": "right"}\n')
    row = {"id": 3, "instruction": "q", "input": "", "response": "a"}
    assert read_labels(file, [row]) == {3: {"reviewer": "right"}}
    assert "line 1" in capsys.readouterr().out


def test_rates_agreement_and_predictors_by_hand() -> None:
    labels = {i: {"ann": "right" if i % 2 else "wrong", "bob": "right" if i % 4 == 1 else "wrong"} for i in range(12)}
    labels[0] = {"ann": "rude"}
    rows = [
        {"id": i, "scores": {"good": float(i % 2), "noise": float(i < 6), "same": 1.0}, "judge": {"value": -(i % 2)}}
        for i in range(13)
    ]
    found = people(rows, labels)
    assert (found["n_labels"], found["n_responses"]) == (23, 12)
    assert found["rates"]["right"]["mean"] == pytest.approx((3 * 1 + 3 * 0.5) / 12)
    assert found["rates"]["rude"]["mean"] == pytest.approx(1 / 12) and found["rates"]["off-topic"]["mean"] == 0
    assert sum(rate["mean"] for rate in found["rates"].values()) == pytest.approx(1)
    assert found["agreement"]["ann, bob"]["n"] == 11 and found["disagreements"] == [3, 7, 11]
    assert (
        list(found["predictors"])[-1] == "noise"
        and found["predictors"]["judge"]["mean"] < 0 < found["predictors"]["good"]["mean"]
    )


def test_the_rank_correlation_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = Random(0)
    values = [random.choice([0.0, 0.5, 1.0]) for _ in range(40)]
    scores = [random.random() if i % 3 else 0.25 for i in range(40)]
    names = {1.0: "right", 0.5: "partly", 0.0: "wrong"}
    rows = [{"id": i, "scores": {"metric": score}} for i, score in enumerate(scores)]
    found = people(rows, {i: {"ann": names[value]} for i, value in enumerate(values)})
    rho = found["predictors"]["metric"]
    assert rho["mean"] == pytest.approx(stats.spearmanr(values, scores).statistic)
    # Bonett and Wright (2000): the standard error of atanh(rho) is that of Fisher, widened by rho.
    assert rho["high"] == pytest.approx(
        math.tanh(math.atanh(rho["mean"]) + 1.95996 * math.sqrt((1 + rho["mean"] ** 2 / 2) / 37)), abs=1e-5
    )
