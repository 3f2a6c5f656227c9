"""python -m instruct_lit.evaluate: let a finished model answer a data set, and score the answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from instruct_lit.config import EvaluateConfig, check_evaluate, run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig

RUN_KEYS = ("data", "batching", "template")  # what is taken from a run when it is not given


def evaluate(config: DictConfig) -> float:
    """Answer a split of the data with the model at `run`, and return the share of exact matches."""
    from hydra.core.hydra_config import HydraConfig

    check_evaluate(config)
    run = Path(config.run).expanduser()
    settings = settings_of(config, run)
    out_dir = Path(HydraConfig.get().runtime.output_dir)

    from instruct_lit import build
    from instruct_lit.evaluation.responses import exact_match, write_jsonl
    from instruct_lit.model.pretrained import load_gpt

    template = build.template_of(settings)
    model = load_gpt(path=str(bundle_of(run)))
    data = build.data_of(settings, template, model.config.context_length)
    data.prepare_data()
    data.setup()
    rows = build.answer_split(
        config, model, data, config.split, config.n_responses, f"answers to the {config.split} set"
    )
    write_jsonl(out_dir / "responses.jsonl", rows)
    score = exact_match(rows)
    metrics = {"run": str(run), "split": config.split, "n_responses": len(rows), f"{config.split}/exact_match": score}
    (out_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(
        f"{config.split}/exact_match  {score:.4f}  ({len(rows)} answers)\n{out_dir / 'responses.jsonl'}",
        file=sys.stdout,
    )
    return score


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
