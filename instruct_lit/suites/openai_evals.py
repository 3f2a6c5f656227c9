"""OpenAI Evals: its own program in its own environment, asking our model over HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from instruct_lit.suites.endpoint import NAME, Endpoint
from instruct_lit.suites.environment import Environment, run_in
from instruct_lit.suites.harness_model import EvaluatedModel
from instruct_lit.suites.judge_check import check_judge
from instruct_lit.suites.suite import BenchmarkError, Figure, RunRequest

# Its declared dependencies cannot be installed together; these are the ones that its basic and graded evals import.
ENVIRONMENT = Environment(
    "openai-evals",
    [
        ["--no-deps", "evals==3.0.1.post1"],
        [
            "openai==3.57.0", "pyyaml==6.0.4", "pydantic==2.14.4", "numpy==2.4.6", "tqdm==4.70.1", "tiktoken==0.14.0",
            "blobfile==3.3.0", "backoff==2.2.1", "beartype==0.23.1", "dacite==1.9.2", "zstandard==0.25.0", "lz4==4.4.5",
            "pandas==3.1.1", "termcolor==3.3.0",
        ],
    ],
)  # fmt: skip
CHAT = "instruct_lit_chat"
CHAT_MODULE = '''"""The program's class for chats refuses the argument `registry`, which the program gives to all."""

from evals.completion_fns.openai import OpenAIChatCompletionFn


class Chat(OpenAIChatCompletionFn):
    def __init__(self, registry, **arguments):
        super().__init__(**arguments)
'''
SEED = 20220722  # the program's own default, which chooses the items of a limit


def run(evaluated: EvaluatedModel, request: RunRequest) -> dict[str, Figure]:
    """The figures of the evals named by `request.tasks`; their records stay in `request.out_dir`.

    `options` may name a `registry` folder of one's own, and for evals that a model grades `judge_url` and
    `judge_model`. Raises BenchmarkError when one fails, and where a grader is needed and none is given: the program
    would let the model grade itself.
    """
    if request.options.get("judge_url"):
        if not request.options.get("judge_model"):
            raise BenchmarkError("suite=openai_evals: judge_url wants suite.options.judge_model=<name> too")
        check_judge("openai_evals", request.options["judge_url"], request.options["judge_model"])
    python = ENVIRONMENT.python(request.cache, request.log)
    if not request.options.get("judge_url"):
        theirs = list(python.parents[1].glob("lib/python*/site-packages/evals/registry"))
        graded = [name for name in request.tasks if is_graded(name, [*_own_registry(request.options), *theirs])]
        if graded:
            raise BenchmarkError(
                f"suite=openai_evals: {', '.join(graded)}: a model grades the answers; give suite.options.judge_url="
                "<endpoint> suite.options.judge_model=<name> of any server with OpenAI's interface"
            )
    figures = {}
    with Endpoint(evaluated) as endpoint:
        registry = _registry(request.out_dir / "registry", endpoint.url, request.options)
        functions = ["subject", *(["judge"] if request.options.get("judge_url") else [])]
        for name in request.tasks:
            record = request.out_dir / f"{name}.jsonl"
            arguments = [
                "-m", "evals.cli.oaieval", ",".join(functions), name, "--record_path", str(record), "--seed", str(SEED),
                "--registry_path", str(registry),
            ]  # fmt: skip
            for folder in _own_registry(request.options):
                arguments += ["--registry_path", str(folder)]
            if request.limit:
                arguments += ["--max_samples", str(request.limit)]
            variables = {"OPENAI_BASE_URL": endpoint.url, "EVALS_THREADS": str(evaluated.max_rows)}
            run_in(python, arguments, request.out_dir, _with_key(variables), request.log, f"suite=openai_evals: {name}")
            figures[name] = _figure(record, name)
    return figures


def is_graded(name: str, registries: Sequence[Path]) -> bool:
    """Whether a model grades the answers of an eval, by the files of the registries."""
    for file in (file for registry in registries for file in sorted((registry / "evals").rglob("*.yaml"))):
        text = file.read_text(encoding="utf-8")
        if f"{name}:" not in text:
            continue
        entries = yaml.safe_load(text) or {}
        if name in entries:
            found = entries.get(entries[name].get("id"), entries[name])
            return str(found.get("class", "")).endswith(":ModelBasedClassify")
    return False


def _own_registry(options: Mapping[str, Any]) -> list[Path]:
    return [Path(options["registry"]).expanduser().resolve()] if options.get("registry") else []


def _with_key(variables: Mapping[str, str]) -> dict[str, str]:
    import os

    return {**variables, "OPENAI_API_KEY": os.environ.get("OPENAI_API_KEY", "none")}


def _registry(folder: Path, url: str, options: Mapping[str, Any]) -> Path:
    """A registry with our model, and the judge where there is one, as completion functions.

    Our model's name must not be the one that the endpoint says: the program would take it for one that is asked by bare
    text, without its template.
    """
    entries = {"subject": _function(NAME, url)}
    if options.get("judge_url"):
        entries["judge"] = _function(str(options["judge_model"]), str(options["judge_url"]))
    place = folder / "completion_fns"
    place.mkdir(parents=True, exist_ok=True)
    (place / "instruct_lit.yaml").write_text(json.dumps(entries))  # JSON is YAML
    (folder.parent / f"{CHAT}.py").write_text(CHAT_MODULE)  # found by the program, which runs there
    return folder


def _function(model: str, url: str) -> dict[str, Any]:
    return {
        "class": f"{CHAT}:Chat",
        "args": {"model": model, "api_base": url, "extra_options": {"temperature": 0}},
    }


def _figure(record: Path, name: str) -> Figure:
    """Accuracy or score out of a record, with its bootstrap standard error; other numbers of the report beside it.

    Where a model graded, an unread grade has the lowest score and is counted. Grades without scores are given as the
    share of each, and of all that were read.
    """
    lines = [json.loads(line) for line in record.read_text(encoding="utf-8").split("\n") if line.strip()]
    report = next((line["final_report"] for line in lines if "final_report" in line), None)
    if report is None:
        raise BenchmarkError(f"suite=openai_evals: {name} left no report in {record}")
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
