"""People's labels: published agreement figures, those of scikit-learn, rates and predictors by hand."""

import json
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

    first = {"id": 3, "label": "wrong", "reviewer": "ann"}
    found = read_labels(written(first, {**first, "label": "right", "note": "x"}, {"id": 4, "label": "rude"}), [3, 4])
    assert found == {3: {"ann": "right"}, 4: {"reviewer": "rude"}}
    for record, message in (
        ({"id": 3}, "line 2: not a label"),
        (["right"], "line 2: not a label"),
        ({"id": 9, "label": "right"}, "line 2: no response has the id 9"),
        ({"id": [], "label": "right"}, "no response has the id"),
    ):
        with pytest.raises(DataError, match=message):
            read_labels(written(first, record), [3, 4])
    with pytest.raises(DataError, match="no labels"):
        read_labels(written(), [3])


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
    assert list(found["predictors"])[-1] == "noise" and found["predictors"]["judge"] < 0 < found["predictors"]["good"]


def test_the_rank_correlation_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = Random(0)
    values = [random.choice([0.0, 0.5, 1.0]) for _ in range(40)]
    scores = [random.random() if i % 3 else 0.25 for i in range(40)]
    names = {1.0: "right", 0.5: "partly", 0.0: "wrong"}
    rows = [{"id": i, "scores": {"metric": score}} for i, score in enumerate(scores)]
    found = people(rows, {i: {"ann": names[value]} for i, value in enumerate(values)})
    assert found["predictors"]["metric"] == pytest.approx(stats.spearmanr(values, scores).statistic)
