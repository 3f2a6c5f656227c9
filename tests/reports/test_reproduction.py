"""How two runs are compared."""

import json
import math
from pathlib import Path

import pytest

from instruct_lit.reports.reproduction import first_difference, relative_difference


@pytest.mark.parametrize(
    ("original", "rerun", "difference"),
    [(2.0, 1.0, 0.5), (0.0, 0.0, 0.0), (math.nan, math.nan, 0.0), (0.5, math.nan, math.inf), (math.inf, 1.0, math.inf)],
)
def test_a_number_that_is_lost_is_a_difference(original: float, rerun: float, difference: float) -> None:
    assert relative_difference(original, rerun) == difference


@pytest.mark.parametrize(
    ("rerun", "first"),
    [([(5, 1.0), (10, 0.5)], None), ([(5, 1.0), (10, 0.6)], 10), ([(5, 1.0)], 10), ([], 5)],
)
def test_the_first_step_that_differs(tmp_path: Path, rerun: list[tuple[int, float]], first: int | None) -> None:
    for name, rows in (("original", [(5, 1.0), (10, 0.5)]), ("rerun", rerun)):
        (tmp_path / name).mkdir()
        lines = [json.dumps({"step": step, "train/loss": loss}) + "\n" for step, loss in rows]
        (tmp_path / name / "history.jsonl").write_text("".join(lines))
    assert first_difference(tmp_path / "original", tmp_path / "rerun") == first
