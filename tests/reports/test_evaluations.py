"""What an evaluation returns and writes, with a judge and without."""

import json
from pathlib import Path
from typing import Any

import pytest

from instruct_lit.evaluation.scores import score_rows
from instruct_lit.evaluation.statistics import interval
from instruct_lit.reports.evaluations import Evaluation


def rows(*responses: str) -> list[dict[str, Any]]:
    return [
        {"id": n, "instruction": f"Say {n}.", "input": "", "output": str(n), "response": response}
        for n, response in enumerate(responses)
    ]


class Judge:
    """Gives every response 50, but none to an empty one."""

    scale = (10, 100)

    def score(self, given: list[dict[str, Any]], seed: int) -> dict[str, Any]:
        for row in given:
            row["judge"] = {"value": 50.0 if row["response"] else None}
        counts = {"n_unparsed": 0, "n_verdicts": len(given), "mean_at_best": 50.0}
        return {"name": "fake", "model": None, "score": interval([50.0] * len(given), seed), **counts}


def test_a_ranking_returns_the_first_models_mean_in_the_first_metric(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    evaluation = Evaluation(tmp_path, ["exact_match", "empty"], Judge())  # type: ignore[arg-type]
    result, found = evaluation.rank({"a": "runs/a", "b": "runs/b"}, [rows("0", "x", ""), rows("0", "1", "2")])
    assert result == pytest.approx(1 / 3) and list(found["comparison"]) == ["exact_match", "empty", "judge"]
    assert found["comparison"]["judge"]["models"]["a"]["mean"] == pytest.approx((50 + 50 + 10) / 3)
    assert json.loads((tmp_path / "evaluation.json").read_text())["n_examples"] == 3
    written = [json.loads(line) for line in (tmp_path / "responses.jsonl").read_text().splitlines()]
    assert [row["model"] for row in written] == ["a", "b"] * 3 and (tmp_path / "report.html").is_file()


def test_a_category_without_what_the_first_metric_counts_is_left_out_of_the_plot(tmp_path: Path) -> None:
    given = rows("0", "x", "2")
    given[0] |= {"checks": [{"contains": "0"}], "kind": "checked"}
    found = {"run": None, "responses": "a.json", "leaks": None}
    found |= score_rows(given, ["checks", "exact_match"], ["kind"])
    assert Evaluation(tmp_path, ["checks", "exact_match"]).score(found, given) == 1
    assert found["by"]["kind"]["none"] == {"n": 2} and found["by"]["kind"]["checked"]["checks"]["n"] == 1
    assert "checks by category" in (tmp_path / "report.html").read_text()


def test_an_audit_has_as_many_judged_responses_as_wanted(tmp_path: Path) -> None:
    given = rows("0", "x", "2")
    found = {"run": None, "responses": "a.json", "leaks": None, **score_rows(given, ["exact_match"])}
    result = Evaluation(tmp_path, ["exact_match"], Judge()).score(found, given, n_audit=2)  # type: ignore[arg-type]
    audit = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert result == pytest.approx(2 / 3) and len(audit) == 2 and all(row["judge"]["value"] == 50 for row in audit)
