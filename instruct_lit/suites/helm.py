"""HELM: its own program in its own environment, with our model as an endpoint of the kind that vLLM serves."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from instruct_lit.core.bundle import save_tokenizer
from instruct_lit.core.jinja_environments import compile_text
from instruct_lit.suites.endpoint import NAME, Endpoint
from instruct_lit.suites.environment import Environment, run_in
from instruct_lit.suites.evaluated_model import EvaluatedModel
from instruct_lit.suites.hub_files import read_rows
from instruct_lit.suites.suite import BenchmarkError, Figure, Items, RunRequest

ENVIRONMENT = Environment("helm", [["crfm-helm==0.5.16", "torch==2.13.0", "torchvision==0.28.0", "openai==3.57.0"]])
MODEL = f"local/{NAME}"
SPLITS = {"dev": "dev", "validation": "val", "test": "test"}  # names on the hub and in the original files


def run(evaluated: EvaluatedModel, request: RunRequest) -> dict[str, Figure]:
    """The figures of the suite's run entries; HELM's whole output is written to `request.out_dir`.

    Raises: BenchmarkError when HELM fails, also for the want of a scenario's data.
    """
    python = ENVIRONMENT.python(request.cache, request.log)
    shutil.rmtree(request.out_dir / "benchmark_output" / "runs", ignore_errors=True)  # of an earlier call
    with Endpoint(evaluated) as endpoint:
        _describe(evaluated, endpoint.url, request.out_dir / "prod_env")
        variables = {"TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
        if request.data_dir is not None:
            _place(request.data_dir, request.out_dir / "benchmark_output" / "scenarios")
            variables |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        entries = [entry_of(task) for task in request.suite.tasks]
        arguments = [
            "-m", "helm.benchmark.run", "--run-entries", *entries, "--suite", NAME, "--local-path", "prod_env",
            "--num-threads", str(evaluated.max_rows), "--disable-cache",
        ]  # fmt: skip
        if request.suite.limit:
            arguments += ["--max-eval-instances", str(request.suite.limit)]
        run_in(python, arguments, request.out_dir, variables, request.log, "suite=helm")
    folders = sorted((request.out_dir / "benchmark_output" / "runs" / NAME).glob("*/stats.json"))
    if not folders:
        raise BenchmarkError(f"suite=helm: no run wrote statistics; the output of HELM is in {request.log}")
    return {name_of(file.parent.name): _figure(file) for file in folders}


def _describe(evaluated: EvaluatedModel, url: str, folder: Path) -> None:
    """Write the files that describe the model, its tokenizer and its endpoint to HELM."""
    context_length = evaluated.model.config.context_length
    save_tokenizer(folder / "tokenizer", evaluated.tokenizer, context_length, evaluated.template)
    source = Path(__file__).with_name("helm.yaml.jinja").read_text(encoding="utf-8")
    tokenizer = str((folder / "tokenizer").resolve())
    text = compile_text(source).render(
        model=MODEL, name=NAME, url=url, context_length=context_length, tokenizer=tokenizer
    )
    for name, content in yaml.safe_load(text).items():
        (folder / f"{name}.yaml").write_text(json.dumps(content))  # JSON is YAML


def entry_of(task: str) -> str:
    """A run entry of HELM, such as `gsm` or `mmlu:subject=anatomy`, with our model as one more argument."""
    task = task.rstrip(":,")
    return f"{task}{',' if ':' in task else ':'}model={MODEL}"


def _place(data_dir: Path, scenarios: Path) -> None:
    """Copy MMLU and the folders `helm/<scenario>/` of `data_dir` to where HELM looks before it downloads."""
    _place_mmlu(data_dir / "cais" / "mmlu", scenarios / "mmlu" / "data")
    if (data_dir / "helm").is_dir():
        shutil.copytree(data_dir / "helm", scenarios, dirs_exist_ok=True)


def _place_mmlu(hub: Path, folder: Path) -> None:
    """Write MMLU's original files from the hub's, so that HELM downloads none."""
    for source in sorted(hub.glob("*/*.jsonl")):
        if source.stem in SPLITS:
            split = SPLITS[source.stem]
            target = folder / split / f"{source.parent.name}_{split}.csv"
            target.parent.mkdir(parents=True, exist_ok=True)
            rows = read_rows(source, lambda item: [item["question"], *item["choices"], "ABCD"[item["answer"]]])
            with target.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(rows)


def name_of(run: str) -> str:
    """The name of a run without the arguments that all runs share."""
    scenario, _, arguments = run.partition(":")
    kept = [a for a in arguments.split(",") if not a.startswith(("model=", "method=", "groups="))]
    return ":".join(filter(None, (scenario, ",".join(kept))))


def items_of(folder: Path, task: str, metric: str) -> Items:
    """Test instances without perturbation and their value in the metric."""
    found: Items = []
    for file in sorted((folder / "benchmark_output" / "runs").glob("*/*/scenario_state.json")):
        if name_of(file.parent.name) != task:
            continue
        values = {
            row["instance_id"]: stat["mean"]
            for row in json.loads((file.parent / "per_instance_stats.json").read_text(encoding="utf-8"))
            for stat in row["stats"]
            if row.get("perturbation") is None and stat["name"] == {"name": metric, "split": "test"}
        }
        states = json.loads(file.read_text(encoding="utf-8"))["request_states"]
        texts = {state["instance"]["id"]: state["instance"]["input"]["text"] for state in states}
        found += [(text, values[number]) for number, text in texts.items() if number in values]
    return found


def _figure(file: Path) -> Figure:
    """The main metric of a run's test instances without perturbation."""
    stats: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    plain = {
        s["name"]["name"]: s for s in stats if s["name"].get("split") == "test" and "perturbation" not in s["name"]
    }
    spec = json.loads((file.parent / "run_spec.json").read_text(encoding="utf-8"))
    metric = next((m for m in ("exact_match", "final_number_exact_match", "f1_score") if m in plain), None)
    if metric is None:
        raise BenchmarkError(f"suite=helm: {file.parent.name} reports neither exact match nor F1")
    value, n = float(plain[metric]["mean"]), int(plain["num_instances"]["mean"]) if "num_instances" in plain else 0
    states = json.loads((file.parent / "scenario_state.json").read_text(encoding="utf-8"))["request_states"]
    chance = 0.0
    if spec["adapter_spec"]["method"].startswith("multiple"):
        chance = sum(1 / len(s["instance"]["references"]) for s in states) / len(states)
    n = n or len({state["instance"]["id"] for state in states})
    return Figure(
        metric=metric,
        value=value,
        stderr=(value * (1 - value) / (n - 1)) ** 0.5 if n > 1 and 0 <= value <= 1 else None,
        n=n,
        chance=chance,
        n_shot=spec["adapter_spec"].get("max_train_instances"),
        others={m: float(plain[m]["mean"]) for m in ("quasi_exact_match", "prefix_exact_match") if m in plain},
    )
