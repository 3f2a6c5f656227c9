"""AlpacaEval: answers to its instructions, judged pairwise against a reference by its own package and a judge."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path
from typing import Any

from instruct_lit.core.data.example import Example
from instruct_lit.core.generation.responses import closing
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.suites.environment import Environment, run_in
from instruct_lit.suites.harness_model import EvaluatedModel
from instruct_lit.suites.judge_check import check_judge
from instruct_lit.suites.suite import BenchmarkError, Figure, RunRequest

ENVIRONMENT = Environment("alpaca-eval", [["alpaca-eval==0.6.6", "setuptools<81", "datasets==5.2.0", "openai==3.57.0"]])
REPO, FILE, TABLE = "tatsu-lab/alpaca_eval", "alpaca_eval.json", "df_gamed.csv"
COLUMNS = {"model", "index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"}  # of TABLE


def run(evaluated: EvaluatedModel, request: RunRequest) -> dict[str, Figure]:
    """The win rate against the reference answers; answers and verdicts stay in `request.out_dir`.

    Of `options`: `references` is a file of reference answers (fetched from the hub where it is null), `annotator` a
    judge of the package, `judge_model` and `judge_url` another model behind OpenAI's interface, `logprobs` whether that
    gives log-probabilities, `length_controlled` whether the length-controlled rate is wanted (`length_table`),
    `max_new_tokens` the length of an answer. The key is taken from OPENAI_API_KEY. Verdicts that cannot be read are
    counted.
    """
    options = request.options
    if not options.get("judge_url") and not os.environ.get("OPENAI_API_KEY"):
        raise BenchmarkError(
            "suite=alpaca_eval: a judge is needed; set OPENAI_API_KEY, or give suite.options.judge_url=<endpoint> "
            "suite.options.judge_model=<name> of any server with OpenAI's interface"
        )
    references = read_references(request)[: request.limit]
    table = length_table(request) if options["length_controlled"] else None
    check_judge("alpaca_eval", options.get("judge_url"), options.get("judge_model"))
    python = ENVIRONMENT.python(request.cache, request.log)
    prompts = [evaluated.template.prompt(Example(r["instruction"], "")) for r in references]
    settings = SamplingSettings(max_new_tokens=int(options["max_new_tokens"]), stop=closing(evaluated.template))
    evaluated.expect(len(prompts))
    answers = evaluated.write(prompts, [settings] * len(prompts))
    outputs = [
        {"instruction": r["instruction"], "output": answer, "generator": "instruct-lit"}
        for r, answer in zip(references, answers, strict=True)
    ]
    for name, rows in (("model_outputs", outputs), ("reference_outputs", references)):
        (request.out_dir / f"{name}.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    judge = f"{options['annotator']}-{options.get('judge_model') or 'own'}"
    verdicts = request.cache / "benchmark" / f"alpaca_eval-{re.sub(r'[^a-zA-Z0-9_.-]', '_', judge)}.json"
    task = {
        "annotator": options["annotator"],
        "judge_model": options.get("judge_model"),
        "logprobs": options["logprobs"],
        "length_table": table and str(table),
        "verdicts": str(verdicts),
    }
    (request.out_dir / "task.json").write_text(json.dumps(task))
    variables = {"OPENAI_API_KEY": os.environ.get("OPENAI_API_KEY", "none"), "OPENAI_MAX_CONCURRENCY": "8"}
    if options.get("judge_url"):
        variables["OPENAI_API_BASE"] = str(options["judge_url"])
    driver = Path(__file__).with_name("alpaca_driver.py").resolve()
    run_in(python, ["-P", str(driver)], request.out_dir, variables, request.log, "suite=alpaca_eval")
    return {"alpaca_eval": _figure(json.loads((request.out_dir / "result.json").read_text()), len(outputs))}


def read_references(request: RunRequest) -> list[dict[str, Any]]:
    """Reference answers with their instructions: the file of the options, of `data_dir`, or of the hub."""
    given, instead = request.options.get("references"), "suite.options.references=<file with instruction and output>"
    path = Path(given).expanduser() if given else _file(request, FILE, instead)
    if not path.is_file():
        raise BenchmarkError(f"suite.options.references={given}: no such file")
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list) or not all(isinstance(r, dict) and {"instruction", "output"} <= set(r) for r in rows):
        raise BenchmarkError(f"{path}: no list of records with instruction and output")
    return [{"generator": "reference", **row} for row in rows]


def length_table(request: RunRequest) -> Path:
    """The package's table for the length-controlled rate, of `data_dir` or of the hub.

    It has how difficult each of the 805 instructions is, in their order, and verdicts on answers of the baseline that
    were made short and long on purpose, to which the fit is drawn. Raises BenchmarkError where it cannot be had.
    """
    path = _file(request, TABLE, "suite.options.length_controlled=false")
    with path.open(encoding="utf-8", newline="") as file:
        missing = COLUMNS - set(next(csv.reader(file), []))
    if missing:
        raise BenchmarkError(f"{path}: no table of AlpacaEval's, it has no column {', '.join(sorted(missing))}")
    return path


def _file(request: RunRequest, name: str, instead: str) -> Path:
    """A file of AlpacaEval's data: of `data_dir`, or where none is given fetched from the hub."""
    if request.data_dir is not None:
        path = request.data_dir / REPO / name
        if not path.is_file():
            raise BenchmarkError(
                f"suite=alpaca_eval: {path} is not there; put {name} of the hub's data set {REPO} there, or give "
                f"{instead}"
            )
        return path
    from huggingface_hub import hf_hub_download

    try:
        # Data, not code: its newest state is what the leaderboard compares with.
        return Path(hf_hub_download(REPO, name, repo_type="dataset", cache_dir=request.cache / "hub"))  # nosec B615
    except Exception as error:  # the hub's client lets errors of its HTTP library through
        raise BenchmarkError(
            f"suite=alpaca_eval: {name} of {REPO} cannot be fetched from the Hugging Face hub "
            f"({type(error).__name__}); give benchmark.data_dir=<folder with {REPO}/{name}>, or {instead}"
        ) from error


def _figure(result: dict[str, Any], n: int) -> Figure:
    """Win rates as shares. A verdict that could not be read counts as a tie."""
    n_read = int(result["n_total"])
    rate = (result["win_rate"] / 100 * n_read + 0.5 * (n - n_read)) / n if n_read else 0.5
    others = {"n_unread_verdicts": float(n - n_read), "mean_characters": float(result["avg_length"])}
    if result.get("length_controlled_winrate") is not None:
        others["length_controlled_win_rate"] = result["length_controlled_winrate"] / 100
    error = result.get("standard_error")
    return Figure("win_rate", rate, error / 100 if error is not None else None, n, chance=None, others=others)
