"""Training on what docs/data.md shows: conversations, mixtures, filters."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

TURNS = [["one", "two", "three"], ["four", "five"], ["six"]]


def write_talks(path: Path, n: int) -> None:
    with path.open("w") as file:
        for i in range(n):
            turns = [
                {"role": role, "content": f"{word} {i}"} for word in TURNS[i % 3] for role in ("user", "assistant")
            ]
            file.write(json.dumps({"messages": [{"role": "system", "content": "Count."}, *turns]}) + "\n")


def test_a_mixture_of_conversations_and_demo_with_filters(
    command: Callable, small: tuple[str, ...], tmp_path: Path
) -> None:
    write_talks(tmp_path / "talks.jsonl", 30)
    (tmp_path / "mine.py").write_text("def keep(record):\n    return '7' not in record['instruction']\n")
    options = [o for o in small if not o.startswith(("data.source", "data.split"))]
    done = command(
        "train", *options, "data=mixture", "data.sets={talks: {path: talks.jsonl, weight: 1}, demo: {source: {n_examples: 60}, weight: 3}}",
        "data.split={train:0.7,val:0.2,test:0.1}", "data.filters={function: {path: mine.py}, length: {max_prompt_words: 30}}",
        "template=chatml", "trainer.max_epochs=1", "callbacks.early_stopping.monitor=val/loss/talks", "hydra.run.dir=run", cwd=tmp_path,
    )  # fmt: skip
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["n_filtered_function"] == 3 and f"{metrics['n_filtered_function']} filtered_function" in done.stdout
    talks, demo = (metrics[f"mixture/{name}/n_examples"] for name in ("talks", "demo"))
    assert demo / (talks + demo) == pytest.approx(0.75, abs=0.02) and "talks: 25" in done.stdout
    low, high = sorted(metrics[f"val/loss/{name}"] for name in ("talks", "demo"))
    assert low < metrics["val/loss"] < high and "base/test/loss/demo" in metrics
    rows = [json.loads(line) for line in (tmp_path / "run" / "responses.jsonl").read_text().splitlines()]
    assert any(row.get("history") for row in rows) and all(row["response"] is not None for row in rows)
    refused = command("evaluate", "run=run", cwd=tmp_path, status=2).stderr
    assert "its data were filtered by mine.py, and code that a run folder names is not run" in refused
    first = command(
        "peek", "run=run", "data=files", "data.path=talks.jsonl", "index=0", "data.loss_on=last", cwd=tmp_path
    )
    assert "history: " in first.stdout and "<|im_start|>" in first.stdout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=mixture", "data.sets={mine: {path: nowhere.json}}"], "data.sets.mine.path=nowhere.json: no such file"),
        (["data=mixture", "data.sets={bok: {repeat: 2}}"], "data.sets.bok.repeat: allowed are data, path"),
        (["data.filters={lenght: {}}"], "data.filters.lenght: allowed are length"),
    ],
)
def test_bad_input_gives_one_message(overrides: list[str], message: str, command: Callable, tmp_path: Path) -> None:
    done = command("train", *overrides, cwd=tmp_path, status=2)
    assert message in done.stderr and "Traceback" not in done.stderr
