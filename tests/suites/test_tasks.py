"""Metrics of our own task files, item by item."""

import pytest

from instruct_lit.suites.tasks.functions import pearson, spearman, squad


@pytest.mark.parametrize(
    ("references", "response", "exact", "f1"),
    [
        (["The Eiffel Tower", "tower"], " the eiffel tower!", 1, 1),
        (["in 1889", "1889"], "It was 1889", 0, 0.5),
        (["北京市"], "北京", 0, 0),  # no common word for SQuAD's script
        ([], "", 1, 1),  # a question without an answer
        ([], "1889", 0, 0),
    ],
)
def test_squad_takes_the_best_reference(references: list[str], response: str, exact: float, f1: float) -> None:
    assert squad({"answers": {"text": references}}, [response]) == {"exact_match": exact, "f1": f1}


def test_correlations_with_ties_and_constants() -> None:
    pytest.importorskip("scipy")
    ties = [(0.0, 1.0), (1.0, 1.0), (2.0, 3.0), (2.0, 4.0)]
    assert (pearson(ties), spearman(ties)) == (pytest.approx(0.870388), pytest.approx(4 / 4.5))
    assert pearson([(1.0, 2.0), (1.0, 3.0)]) == spearman([(0.0, 2.0), (1.0, 2.0)]) == 0
