"""Training on what docs/data.md shows: conversations, mixtures, filters."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from instruct_lit.config.check_commands import check_command
from instruct_lit.errors import ConfigError
from tests.configs import composed

TURNS = [["one", "two", "three"], ["four", "five"], ["six"]]


def write_talks(path: Path, n: int, first: int = 0) -> None:
    with path.open("w") as file:
        for i in range(first, first + n):
            turns = [
                {"role": role, "content": f"{word} {i}"} for word in TURNS[i % 3] for role in ("user", "assistant")
            ]
            file.write(json.dumps({"messages": [{"role": "system", "content": "Count."}, *turns]}) + "\n")


@pytest.mark.slow
def test_a_mixture_of_conversations_and_demo_with_filters(
    command: Callable, small: tuple[str, ...], tmp_path: Path
) -> None:
    write_talks(tmp_path / "talks.jsonl", 30)
    (tmp_path / "mine.py").write_text("def keep(record):\n    return '7' not in record['instruction']\n")
    options = [o for o in small if not o.startswith(("data.source", "data.split"))]
    done = command(
        "train", *options, "data=mixture", "data.sets={talks: {path: talks.jsonl, weight: 1}, demo: {source: {n_examples: 60}, weight: 3}}",
        "data.split={train:0.7,val:0.2,test:0.1}", "data.filters={function: {path: mine.py}, length: {max_prompt_words: 30}}",
        "template=chatml", "model.context_length=128", "data.max_length=128", "trainer.max_epochs=1", "callbacks.early_stopping.monitor=val/loss/talks",
        "bundle_dtype=bfloat16",
        "hydra.run.dir=run", cwd=tmp_path,
    )  # fmt: skip
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["n_filtered_function"] == 3 and f"{metrics['n_filtered_function']} filtered_function" in done.stderr
    talks, demo = (metrics[f"mixture/{name}/n_examples"] for name in ("talks", "demo"))
    assert demo / (talks + demo) == pytest.approx(0.75, abs=0.02) and "talks: 25" in done.stderr
    low, high = sorted(metrics[f"val/loss/{name}"] for name in ("talks", "demo"))
    assert low < metrics["val/loss"] < high and "base/test/loss/demo" in metrics
    rows = [json.loads(line) for line in (tmp_path / "run" / "responses.jsonl").read_text().splitlines()]
    assert json.loads((tmp_path / "run/bundle/config.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((tmp_path / "run/bundle/instruct_lit.json").read_text())["base"] == {"id": None, "licence": None}
    assert not list((tmp_path / "run").glob(".preflight*"))
    assert any(row.get("history") for row in rows) and all(row["response"] is not None for row in rows)
    refused = command("evaluate", "run=run", cwd=tmp_path, status=2).stderr
    assert "data.filters.function=mine.py: code that a run folder names is never executed" in refused
    first = command(
        "peek", "run=run", "data=files", "data.path=talks.jsonl", "index=0", "data.loss_on=last", cwd=tmp_path
    )
    assert "history: " in first.stdout and "<|im_start|>" in first.stdout


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_streamed_run_and_its_resume(command: Callable, small: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for shard in range(3):
        write_talks(tmp_path / "set" / f"{shard}.jsonl", 12, 12 * shard)
    options = [o for o in small if not o.startswith(("data.source", "data.split"))]
    stream = [
        *options, "data=files", "data.path=set", "data.streaming=true", "data.split={val:4,test:3}", "data.shuffle_buffer=10",
        "trainer.val_check_interval=2", "evaluate_base=false", "trainer.max_epochs=-1",
        "callbacks.early_stopping=null",
    ]  # fmt: skip
    for arguments in (["6", "whole"], ["3", "half"], ["6", "rest", "ckpt_path=half"]):
        command("train", *stream, f"trainer.max_steps={arguments[0]}", f"hydra.run.dir={arguments[1]}", *arguments[2:],
                cwd=tmp_path)  # fmt: skip
    losses = {}
    for name in ("whole", "rest"):
        rows = [json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
        losses[name] = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert set(losses["whole"]) == set(range(1, 7))
    assert losses["rest"] == pytest.approx(losses["whole"], rel=1e-6)
    metrics = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert metrics["n_val"] == 4 and metrics["n_test"] == 3 and metrics["n_read"] > 20 and metrics["n_steps"] == 6
    assert len((tmp_path / "whole" / "responses.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        ([], ["trainer.max_steps=-1: a stream has no length", "trainer.val_check_interval=0.25: a stream has no length",
              "data.split.val=0.05: a stream has no length, so give a count"]),
        (["batching=bucketed"], ["batching.grouping=length: lengths are unknown in a stream"]),
        (["data.keep_together=near_duplicates"], ["near-duplicates are not found in a stream"]),
        (["data.filters={near_duplicates: {}}"], ["near-duplicates are not found in a stream"]),
    ],
)  # fmt: skip
def test_what_a_stream_cannot_do_is_said(overrides: list[str], messages: list[str], tmp_path: Path) -> None:
    config = composed("train", "data=files", f"data.path={tmp_path}", "data.streaming=true", *overrides)
    with pytest.raises(ConfigError) as caught:
        check_command("train", config)
    assert all(message in str(caught.value) for message in messages)


@pytest.mark.slow
def test_what_is_no_set_of_files_is_not_streamed(command: Callable, small: tuple[str, ...], tmp_path: Path) -> None:
    done = command("train", "data.streaming=true", "data.split={val:4,test:3}", "trainer.max_steps=3",
                   "trainer.val_check_interval=2", cwd=tmp_path, status=2)  # fmt: skip
    assert "data.streaming=true: data=demo cannot be streamed; use data=files or data=hf_stream" in done.stderr
