"""The book's own numbers: what is published is reproduced, and the recipes run end to end with random weights."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import book
from tests.conftest import ROOT

PUBLISHED = ROOT.parent / "shared" / "data" / "judge"


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published scores are not at hand")
def test_the_published_scores_and_answers() -> None:
    found = book.published(PUBLISHED)
    means = {row["scores"]: round(row["mean"], 2) for row in found["scores"]}
    assert means["Llama 3, model 1"] == 77.05 and means["Llama 3, model 2"] == 67.37
    assert (
        means["GPT-4, model 1"] == 74.09 and means["GPT-4, model 2"] == 56.57
    )  # of the files; the notebook has others
    assert found["answers"]["exact_match"]["n"] == 110
    differences = [value - 49.45 for _, value in book.RECIPES.values()]
    assert max(map(abs, differences)) < found["noise"]["of_a_difference"]


@pytest.mark.slow
def test_a_recipe_runs_end_to_end_with_random_weights_and_a_local_judge(
    judge_server: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [{"instruction": f"Say {n}.", "input": "", "output": f"word {n}"} for n in range(40)]
    (tmp_path / "records.json").write_text(json.dumps(records))
    small = (
        "model=nano", "model.pretrained=false", "model.path=null", "model.n_layers=1", "model.d_model=16", "model.context_length=96",
        "data.max_length=96", f"data.path={tmp_path / 'records.json'}", "data.source.sha256=null", "data.split={train:24,val:8,test:8}",
        "generation.max_new_tokens=4", "callbacks.sample_answers=null", "trainer.max_epochs=1", "trainer.accelerator=cpu",
        "trainer.log_every_n_steps=1", "verify=false",
    )  # fmt: skip
    server = judge_server(lambda n, body: json.dumps({"score": 40 + n % 3}))
    judge = ("judge=ollama", f"judge.url={server.url}", "judge.model=small")
    options = ["--seeds", "1,2", "--recipe", "masked instructions", "--runs", str(tmp_path / "runs")]
    options += [part for value in small for part in ("--set", value)] + [p for v in judge for p in ("--judge", v)]
    monkeypatch.setattr(sys, "argv", ["book", *options, "--json", str(tmp_path / "book.json")])
    book.main()
    rows = json.loads((tmp_path / "book.json").read_text())["runs"]
    figures = {row["figure"]: row for row in rows}
    assert (
        len(figures["test loss"]["seeds"]) == 2 and figures["test loss"]["seeds"][0] != figures["test loss"]["seeds"][1]
    )
    assert (
        figures["judge"]["published"] == 47.73 and "| masked instructions | judge | 47.73 |" in capsys.readouterr().out
    )
