"""OpenAI Evals: its own program in its own environment, with our model as an endpoint."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from instruct_lit.evaluation.answer_files import read_jsonl
from instruct_lit.suites.endpoint import NAME, Endpoint
from instruct_lit.suites.environment import Environment, run_in
from instruct_lit.suites.evaluated_model import EvaluatedModel
from instruct_lit.suites.judged_answers import check_judge
from instruct_lit.suites.suite import BenchmarkError, Figure, Items, RunRequest

# Its declared dependencies conflict; these are the ones that its basic and model-graded evals import.
REQUIREMENTS = Path(__file__).with_name("openai_evals.requirements.txt").read_text(encoding="utf-8").split()
ENVIRONMENT = Environment("openai-evals", [["--no-deps", "evals==3.0.1.post1"], REQUIREMENTS])
CHAT = "instruct_lit_chat"
CHAT_MODULE = '''"""The package's class for chats rejects the argument `registry`, which the package passes to all."""

from evals.completion_fns.openai import OpenAIChatCompletionFn


class Chat(OpenAIChatCompletionFn):
    def __init__(self, registry, **arguments):
        super().__init__(**arguments)
'''
SEED = 20220722  # the package's own default, which selects the items of a limit


def run(evaluated: EvaluatedModel, request: RunRequest) -> dict[str, Figure]:
    """The figures of the suite's evals; their records are written to `request.out_dir`.

    `options` may name a `registry` folder of your own, and `judge_url` and `judge_model` for model-graded evals.

    Raises: BenchmarkError when an eval fails, and when one is model-graded and no judge is given: the package would let
        the model grade itself.
    """
    suite = request.suite
    judge_url, judge_model = suite.options.get("judge_url"), suite.options.get("judge_model")
    if judge_url:
        if not judge_model:
            raise BenchmarkError("suite=openai_evals: judge_url requires suite.options.judge_model=<name>")
        check_judge("openai_evals", judge_url, judge_model)
    given = suite.options.get("registry")
    registries = [Path(given).expanduser().resolve()] if given else []
    python = ENVIRONMENT.python(request.cache, request.log)
    if not judge_url:
        stock = list(python.parents[1].glob("lib/python*/site-packages/evals/registry"))
        if graded := [name for name in suite.tasks if is_graded(name, [*registries, *stock])]:
            raise BenchmarkError(
                f"suite=openai_evals: {', '.join(graded)}: model-graded; give suite.options.judge_url=<endpoint> "
                "suite.options.judge_model=<name> of any OpenAI-compatible server"
            )
    figures = {}
    with Endpoint(evaluated) as endpoint:
        registries.insert(0, _registry(request.out_dir / "registry", endpoint.url, judge_url, judge_model))
        variables = {
            "OPENAI_BASE_URL": endpoint.url, "OPENAI_API_KEY": os.environ.get("OPENAI_API_KEY", "none"),
            "EVALS_THREADS": str(evaluated.max_rows),
        }  # fmt: skip
        for name in suite.tasks:
            record = request.out_dir / f"{name}.jsonl"
            arguments = [
                "-m", "evals.cli.oaieval", "subject,judge" if judge_url else "subject", name,
                "--record_path", str(record), "--seed", str(SEED),
            ]  # fmt: skip
            for folder in registries:
                arguments += ["--registry_path", str(folder)]
            if suite.limit:
                arguments += ["--max_samples", str(suite.limit)]
            run_in(python, arguments, request.out_dir, variables, request.log, f"suite=openai_evals: {name}")
            figures[name] = _figure(record, name)
    return figures


def items_of(folder: Path, task: str, metric: str) -> Items:
    """The prompt of each sample, and whether the response matched or, where it has one, the score of its grade."""
    prompts: dict[str, str] = {}
    values: dict[str, float] = {}
    for event in read_jsonl(folder / f"{task}.jsonl"):
        if event.get("type") == "sampling":
            prompt = event["data"]["prompt"]
            text = prompt if isinstance(prompt, str) else "\n\n".join(str(message["content"]) for message in prompt)
            prompts.setdefault(event["sample_id"], text)
        elif event.get("type") == "match":
            values[event["sample_id"]] = float(event["data"]["correct"])
        elif event.get("type") == "metrics" and event["data"].get("score") is not None:
            values[event["sample_id"]] = float(event["data"]["score"])
    return [(prompt, values.get(sample)) for sample, prompt in prompts.items()]


def is_graded(name: str, registries: Sequence[Path]) -> bool:
    """Whether an eval is model-graded, by the files of the registries."""
    for file in (file for registry in registries for file in sorted((registry / "evals").rglob("*.yaml"))):
        text = file.read_text(encoding="utf-8")
        if f"{name}:" not in text:
            continue
        entries = yaml.safe_load(text) or {}
        if name in entries:
            found = entries.get(entries[name].get("id"), entries[name])
            return str(found.get("class", "")).endswith(":ModelBasedClassify")
    return False


def _registry(folder: Path, url: str, judge_url: str | None, judge_model: str | None) -> Path:
    """Write a registry with our model, and the judge where there is one, as completion functions.

    The name of our function must differ from the model's name at the endpoint: otherwise the package sends bare text
    without the model's template.
    """
    entries = {"subject": _function(NAME, url)}
    if judge_url:
        entries["judge"] = _function(str(judge_model), str(judge_url))
    place = folder / "completion_fns"
    place.mkdir(parents=True, exist_ok=True)
    (place / "instruct_lit.yaml").write_text(json.dumps(entries))  # JSON is YAML
    (folder.parent / f"{CHAT}.py").write_text(CHAT_MODULE)  # importable, since the program runs there
    return folder


def _function(model: str, url: str) -> dict[str, Any]:
    arguments = {"model": model, "api_base": url, "extra_options": {"temperature": 0}}
    return {"class": f"{CHAT}:Chat", "args": arguments}


def _figure(record: Path, name: str) -> Figure:
    """Accuracy or score of a record with its bootstrap standard error, and the other numbers of its report.

    A grade that could not be parsed has the lowest score and is counted. Grades without scores become the share of
    each, and of all that were parsed.
    """
    lines = read_jsonl(record)
    report = next((line["final_report"] for line in lines if "final_report" in line), None)
    if report is None:
        raise BenchmarkError(f"suite=openai_evals: {name} wrote no report to {record}")
    numbers = {k: float(v) for k, v in report.items() if isinstance(v, int | float) and not k.startswith("usage_")}
    n = len({line["sample_id"] for line in lines if line.get("sample_id")})
    grades = {key: numbers.pop(key) for key in list(numbers) if key.startswith("counts/")}
    if grades:
        n_unread = grades.pop("counts/__invalid__", 0.0)
        numbers |= {f"share/{key.removeprefix('counts/')}": count / n for key, count in sorted(grades.items())}
        numbers |= {"graded": 1 - n_unread / n, "n_unread_verdicts": n_unread}
    metric = next((m for m in ("accuracy", "score", "f1_score", "graded") if m in numbers), next(iter(numbers), None))
    if metric is None:
        raise BenchmarkError(f"suite=openai_evals: {name} reports no number: {report}")
    error = numbers.pop("boostrap_std", None)  # its own spelling
    return Figure(metric, numbers[metric], error, n, others={k: v for k, v in numbers.items() if k != metric})
