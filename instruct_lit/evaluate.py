"""python -m instruct_lit.evaluate: let a finished model answer a data set, and score the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_lit.config import EvaluateConfig, check_evaluate, run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig


def evaluate(config: DictConfig) -> float:
    """Answer a split of the data with the model at `run`, or take given answers; return the first metric's mean."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    check_evaluate(config)
    out_dir = Path(HydraConfig.get().runtime.output_dir)

    from instruct_lit.evaluation.metrics import by_category, check_metrics, score
    from instruct_lit.evaluation.page import print_scores, write_page
    from instruct_lit.evaluation.responses import read_responses, write_jsonl

    check_metrics(config.metrics)
    if config.responses is not None:
        rows = read_responses(Path(config.responses), config.response_field)
    else:
        rows = answers_of_run(config)
    scores = score(rows, config.metrics, config.seed)
    first = config.metrics[0]
    categories = {field: by_category(rows, field, first, config.seed) for field in config.by}
    for row in rows:
        row["scores"] = {name: score([row], [name])[name]["mean"] for name in config.metrics}
    write_jsonl(out_dir / "responses.jsonl", rows)
    found = {
        "run": config.run, "responses": config.responses, "split": config.split, "n_responses": len(rows),
        "generation": OmegaConf.to_container(config.generation), "metrics": scores, "by": categories,
    }  # fmt: skip
    (out_dir / "evaluation.json").write_text(json.dumps(found, indent=2) + "\n")
    write_page(out_dir / "report.html", found, rows)
    print_scores(found)
    print(f"{out_dir}: responses.jsonl, evaluation.json, report.html")
    return scores[first]["mean"]


def answers_of_run(config: DictConfig) -> list[dict[str, Any]]:
    """Let the model at `run` answer the split."""
    from instruct_lit import build
    from instruct_lit.model.pretrained import load_gpt

    run = Path(config.run).expanduser()
    settings = settings_of(config, run)
    template = build.template_of(settings)
    model = load_gpt(path=str(bundle_of(run)))
    data = build.data_of(settings, template, model.config.context_length)
    data.prepare_data()
    data.setup()
    title = f"answers to the {config.split} set"
    return build.answer_split(config, model, data, config.split, config.n_responses, title)


def bundle_of(run: Path) -> Path:
    """The directory with the weights: `run` itself, or the bundle of a run folder."""
    return run / "bundle" if (run / "bundle").is_dir() else run


def settings_of(config: DictConfig, run: Path) -> DictConfig:
    """The configuration with what is not given taken from the run folder and the bundle.

    Raises ConfigError when the data or the template is neither given nor known.
    """
    from omegaconf import OmegaConf

    from instruct_lit.bundle import OURS, load_bundle
    from instruct_lit.errors import ConfigError

    folder = run.parent if (run.name == "bundle" and (run.parent / "config.yaml").is_file()) else run
    saved = OmegaConf.load(folder / "config.yaml") if (folder / "config.yaml").is_file() else OmegaConf.create()
    settings = OmegaConf.create({"seed": config.seed, "paths": config.paths, "batching": {}})
    if config.data is None and "data" not in saved:
        raise ConfigError(f"run={run}: no run folder, so the data must be given (data=files data.path=…, data=book)")
    settings.data = config.data if config.data is not None else saved.data
    if config.template is not None:
        settings.template = config.template
    elif (bundle_of(run) / OURS).is_file():
        template = load_bundle(run).template
        settings.template = {"name": template.name, "text": template.text, "path": None}
    else:
        raise ConfigError(f"run={run}: no bundle of ours, so the template must be given (template=alpaca)")
    return settings


def main() -> None:
    """Entry point of the command."""
    run_command("evaluate", EvaluateConfig, evaluate)


if __name__ == "__main__":
    main()
