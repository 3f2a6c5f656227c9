"""Agreement between judges: by hand, and GPT-4 with Llama-3 on real answers."""

from pathlib import Path

import pytest

from instruct_lit.errors import ConfigError, DataError
from instruct_lit.evaluation.judging.agreement import agreement, read_scores

pytest.importorskip("sklearn")


def test_coefficients_by_hand() -> None:
    found = agreement([0, 20, 40, 100], [10, 0, 60, 90], 0, 100)
    # Ranks 1 2 3 4 and 2 1 3 4: rho = 1 - 6·2 / (4·15), one of six pairs discordant.
    assert found["spearman"] == pytest.approx(0.8) and found["kendall"] == pytest.approx(4 / 6)
    # Fifths 0 1 2 4 and 0 0 3 4: two of four agree, 3/16 would by chance.
    assert found["kappa"] == pytest.approx((2 / 4 - 3 / 16) / (1 - 3 / 16))
    assert found["mean_difference"] == 0 and found["n"] == 4


def test_equal_and_opposite_judges() -> None:
    same = agreement([0, 50, 100], [0, 50, 100], 0, 100)
    assert all(
        same[name] == pytest.approx(1) for name in ("pearson", "spearman", "kendall", "kappa", "kappa_quadratic")
    )
    assert agreement([1, 3, 5], [5, 3, 1], 1, 5)["pearson"] == pytest.approx(-1)


def test_what_cannot_be_paired_is_counted_and_what_is_undefined_is_none() -> None:
    found = agreement([1, None, 3, 4], [1, 2, None, 4], 0, 5)
    assert (found["n"], found["n_unpaired"]) == (2, 2)
    assert agreement([5, 5, 5], [1, 2, 3], 0, 5)["pearson"] is None
    assert agreement([None], [1], 0, 5)["kendall"] is None
    assert agreement([1, 2], [2, 1], 0, 100)["kappa"] is None  # all in one fifth


def test_gpt_4_and_llama_3_on_a_hundred_answers(shared_data: Path) -> None:
    """The coefficients that LLMs-from-scratch publishes for these two files."""
    folder = shared_data / "judge"
    gpt4, llama3 = (
        read_scores(folder / f"{name}-model-1-response.json", 100, "path", 0, 100) for name in ("gpt4", "llama3-8b")
    )
    found = agreement(llama3, gpt4, 0, 100)
    assert found["pearson"] == pytest.approx(0.80489, abs=5e-6)
    assert found["spearman"] == pytest.approx(0.698406, abs=5e-7)
    assert found["kendall"] == pytest.approx(0.57292, abs=5e-6)


def test_a_judge_that_left_an_answer_out_is_found(shared_data: Path) -> None:
    """Of the second model's answers Llama-3 scored 99: which one is missing nobody can tell."""
    with pytest.raises(
        DataError, match=r"llama3-8b-model-2-response.json: 99 scores for 100 responses; .*null where there is none"
    ):
        read_scores(shared_data / "judge" / "llama3-8b-model-2-response.json", 100, "judge.path", 0, 100)


@pytest.mark.parametrize(
    "text",
    [
        "[1, null, 2.5]",
        "1\nnull\n2.5\n",
        '[{"score": 1}, null, {"score": 2.5, "id": 3}]',
        '{"score": 1}\nnull\n{"score": 2.5}',
        '{"score": 1, "why": "a\u2028b"}\nnull\n2.5\n \n',
    ],
)
def test_forms_of_a_score_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "scores").write_text(text)
    assert read_scores(tmp_path / "scores", 3, "judge.calibrate", 0, 100) == [1, None, 2.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", "neither a JSON list nor JSON lines"),
        ("[1, true]", "item 1: True is not a score"),
        ('[{"mark": 1}, 2]', "item 0: {'mark': 1} is not a score"),
        ("[1, 101]", "item 1: 101 is not between 0 and 100; see judge.scale"),
        ("1\nNaN", "item 1: nan is not between 0 and 100"),
    ],
)
def test_wrong_score_files(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "scores").write_text(text)
    with pytest.raises(DataError, match=message):
        read_scores(tmp_path / "scores", 2, "judge.calibrate", 0, 100)
    with pytest.raises(ConfigError, match="judge.calibrate=.*nowhere: no such file"):
        read_scores(tmp_path / "nowhere", 2, "judge.calibrate", 0, 100)
