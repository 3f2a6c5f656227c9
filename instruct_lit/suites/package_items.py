"""The items of systems with packages of their own, out of the files they leave: what was asked, what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from instruct_lit.suites.suite import Figure

Items = list[tuple[str, float | None]]  # text and value; None where the item has no value of its own


def items_of(system: str, folder: Path, tasks: Mapping[str, Figure]) -> dict[str, Items]:
    """The items of each task of a system that ran in `folder`, their mean value being the task's figure."""
    return {name: READERS[system](folder, name, figure.metric) for name, figure in tasks.items()}


def _alpaca_eval(folder: Path, name: str, metric: str) -> Items:
    """Shares of the win; a verdict that could not be read is a tie."""
    rows = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    return [
        (row["instruction"], 0.5 if row.get("preference") is None else float(row["preference"]) - 1) for row in rows
    ]


def _openai_evals(folder: Path, name: str, metric: str) -> Items:
    """The prompt of each sample and whether the answer matched, or the score of a model's grade where it has one."""
    prompts: dict[str, str] = {}
    correct: dict[str, float] = {}
    for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").split("\n"):
        event = json.loads(line or "{}")
        if event.get("type") == "sampling":
            prompts.setdefault(event["sample_id"], _text(event["data"]["prompt"]))
        elif event.get("type") == "match":
            correct[event["sample_id"]] = float(event["data"]["correct"])
        elif event.get("type") == "metrics" and event["data"].get("score") is not None:
            correct[event["sample_id"]] = float(event["data"]["score"])
    return [(prompt, correct.get(sample)) for sample, prompt in prompts.items()]


def _text(prompt: Any) -> str:
    """A prompt of OpenAI Evals: a text, or messages."""
    return prompt if isinstance(prompt, str) else "\n\n".join(str(message["content"]) for message in prompt)


def _helm(folder: Path, name: str, metric: str) -> Items:
    """Test instances without perturbation and their value in the main metric."""
    from instruct_lit.suites.helm import name_of

    found: Items = []
    for file in sorted((folder / "benchmark_output" / "runs").glob("*/*/scenario_state.json")):
        if name_of(file.parent.name) != name:
            continue
        values = {
            row["instance_id"]: stat["mean"]
            for row in json.loads((file.parent / "per_instance_stats.json").read_text(encoding="utf-8"))
            for stat in row["stats"]
            if row.get("perturbation") is None and stat["name"] == {"name": metric, "split": "test"}
        }
        instances = {
            state["instance"]["id"]: state["instance"]["input"]["text"]
            for state in json.loads(file.read_text(encoding="utf-8"))["request_states"]
        }
        found += [(text, values[number]) for number, text in instances.items() if number in values]
    return found


READERS: dict[str, Callable[[Path, str, str], Items]] = {
    "alpaca_eval": _alpaca_eval,
    "openai_evals": _openai_evals,
    "helm": _helm,
}
