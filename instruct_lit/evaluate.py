"""python -m instruct_lit.evaluate: let a finished model answer a data set, and score the answers."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_lit.config import run_command
from instruct_lit.errors import ConfigError
from instruct_lit.schema import DataConfig, GenerationConfig, PathsConfig, TemplateConfig, check_values

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass
class EvaluateConfig:
    run: str | None = None
    responses: str | None = None
    response_field: str = "response"
    metrics: list[str] = field(default_factory=list)
    by: list[str] = field(default_factory=list)
    data: DataConfig | None = None
    template: TemplateConfig | None = None
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    split: str = "test"
    n_responses: int | None = None
    seed: int = 123


def check_evaluate(config: Any) -> None:
    """Raise one ConfigError that lists every impossible value of an evaluation's configuration."""
    problems = check_values(config)
    if config.split not in ("train", "val", "test"):
        problems.append(f"split={config.split}: allowed are train, val, test")
    if (config.run is None) == (config.responses is None):
        problems.append("run=… or responses=…: give one of the two, a model to answer or answers that are there")
    if not config.metrics:
        problems.append("metrics=[]: name at least one")
    if config.responses is not None and not Path(config.responses).expanduser().is_file():
        problems.append(f"responses={config.responses}: no such file")
    if config.run is not None and not Path(config.run).expanduser().is_dir():
        problems.append(f"run={config.run}: no such folder (a run folder, a bundle or a Hugging Face GPT-2 directory)")
    if problems:
        raise ConfigError("\n  ".join(problems))


def evaluate(config: DictConfig) -> float:
    """Answer a split of the data with the model at `run`, or take given answers; return the first metric's mean."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    check_evaluate(config)
    out_dir = Path(HydraConfig.get().runtime.output_dir)

    from instruct_lit.evaluation.categories import by_category, check_fields, losses
    from instruct_lit.evaluation.metrics import METRICS, check_metrics, score
    from instruct_lit.evaluation.page import print_scores, write_page
    from instruct_lit.evaluation.responses import read_responses, write_jsonl

    check_metrics(config.metrics)
    if config.responses is not None:
        rows = read_responses(Path(config.responses), config.response_field)[: config.n_responses]
    else:
        rows = answers_of_run(config)
    check_fields(rows, config.by)
    for row in rows:
        row["scores"] = {name: METRICS[name](row) for name in config.metrics}
    write_jsonl(out_dir / "responses.jsonl", rows)
    first = config.metrics[0]
    found = {
        "run": config.run, "responses": config.responses, "split": config.split, "n_responses": len(rows),
        "generation": OmegaConf.to_container(config.generation), "metrics": score(rows, config.metrics, config.seed),
        "losses": losses(rows, config.seed),
        "by": {field: by_category(rows, field, first, config.seed) for field in config.by},
    }  # fmt: skip
    (out_dir / "evaluation.json").write_text(json.dumps(found, indent=2) + "\n")
    write_page(out_dir / "report.html", found, rows)
    print_scores(found)
    print(f"{out_dir}: responses.jsonl, evaluation.json, report.html")
    return found["metrics"][first]["mean"]


def answers_of_run(config: DictConfig) -> list[dict[str, Any]]:
    """Let the model at `run` answer the split, and take its loss on the wanted responses."""
    from tqdm import tqdm

    from instruct_lit import build
    from instruct_lit.evaluation.losses import response_losses

    opened = build.open_run(config)
    data = build.data_of_run(config, opened)
    title = f"answers to the {config.split} set"
    rows = build.answer_split(config, opened.model, data, config.split, config.n_responses, title)
    store, _ = data.examples_of(config.split)
    with tqdm(total=len(rows), desc="loss of the wanted responses", unit="example", file=sys.stdout) as bar:
        losses = response_losses(opened.model, opened.tokenizer, [store[row["id"]] for row in rows], bar.update)
    for row, (loss, n_tokens) in zip(rows, losses, strict=True):
        row["loss"], row["n_response_tokens"] = loss, n_tokens
    return rows


def main() -> None:
    """Entry point of the command."""
    run_command("evaluate", EvaluateConfig, evaluate)


if __name__ == "__main__":
    main()
