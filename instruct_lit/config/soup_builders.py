"""A soup of finished runs from a configuration: its weights, its losses, and its answers to the test set."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from instruct_lit.config import model_builders as build
from instruct_lit.config.data_builders import data_of_run
from instruct_lit.config.progress import output_streams
from instruct_lit.config.targets import arguments_for
from instruct_lit.core.bundle import OpenedModel, bundle_of
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.responses import write_jsonl
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.causal import CausalLM, best_device, on_device
from instruct_lit.core.training.answers import answer_split
from instruct_lit.errors import ConfigError
from instruct_lit.evaluation.losses import response_losses
from instruct_lit.exporters.soup import make_soup


def runs_of(given: list[str]) -> list[str]:
    """The run folders that are given; of a sweep's folder those of its trials that have finished."""
    runs: list[str] = []
    for name in given:
        folder = Path(name).expanduser()
        trials = sorted((path.parent for path in folder.glob("*/bundle")), key=lambda path: (len(path.name), path.name))
        runs += [str(trial) for trial in trials] if trials and not (folder / "bundle").is_dir() else [name]
    if len(runs) < 2:
        raise ConfigError(f"soup={given}: {len(runs)} finished run; give at least two, or the folder of a sweep")
    for run in runs:
        if not any((bundle_of(run) / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise ConfigError(f"soup=[…,{run}]: no model there; give finished runs, or the folder of a sweep")
    return runs


def soup_of(config: DictConfig, out_dir: Path) -> OpenedModel:
    """The soup of `soup`, tested on the data of its first run; writes soup.json and responses.jsonl to `out_dir`."""
    runs = runs_of(list(config.soup))
    template = build.given_template(config)
    first = build.open_model(runs[0], template)
    data = data_of_run(config, runs[0], first)

    def losses_of(model: CausalLM) -> dict[str, float]:
        found = {}
        for split in ("val", "test"):
            store, indices = data.examples_of(split)
            with on_device(model, best_device()):
                losses = response_losses(model, data.tokenizer, [store[int(i)] for i in indices])
            found[f"{split}/response_loss"] = sum(loss * n for loss, n in losses) / sum(n for _, n in losses)
        return found

    parts = {run: partial(build.open_model, run, template) for run in runs}
    soup, table = make_soup(parts, losses_of, config.soup_method == "greedy")
    (out_dir / "soup.json").write_text(json.dumps(table, indent=2) + "\n")
    rows: list[tuple[str, dict[str, Any]]] = [*table["losses"].items(), ("the soup", table["soup"])]
    for name, losses in rows:
        mark = "+" if name in table["members"] else " "
        print(f"{mark} {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in losses.items()), flush=True)
    sampling = arguments_for(SamplingSettings, soup.generation)
    settings = SamplingSettings(**{**sampling, "stop": tuple(sampling.get("stop", ()))})
    with output_streams("auto"):  # its bar is progress, while export prints results alone
        answers = answer_split(Engine(soup.model, soup.tokenizer), data, "test", None, settings, "answers of the soup")
    write_jsonl(out_dir / "responses.jsonl", answers)
    return replace(soup, directory=out_dir / "soup")
