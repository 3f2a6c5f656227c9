"""AlpacaEval: responses to its instructions, compared with reference responses by its own package and a judge."""

import csv
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from instruct_lit.core.data.example import Example
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.suites.environment import Environment, run_in
from instruct_lit.suites.evaluated_model import EvaluatedModel
from instruct_lit.suites.hub_files import hub_file, read_rows
from instruct_lit.suites.judged_answers import answers_of, check_judge
from instruct_lit.suites.suite import BenchmarkError, Figure, Items, RunRequest

ENVIRONMENT = Environment("alpaca-eval", [["alpaca-eval==0.6.6", "setuptools<81", "datasets==5.2.0", "openai==3.57.0"]])
REPO, FILE, TABLE = "tatsu-lab/alpaca_eval", "alpaca_eval.json", "df_gamed.csv"
COLUMNS = {"model", "index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"}  # of TABLE


def run(evaluated: EvaluatedModel, request: RunRequest) -> dict[str, Figure]:
    """The win rate against the reference responses; responses and verdicts are written to `request.out_dir`.

    Keys of `options` (conf/suite/alpaca_eval.yaml): `references`, a file of reference responses, from the hub where
    null; `annotator`, a judge of the package; `judge_model` and `judge_url`, another model of an OpenAI-compatible
    server, and whether it gives `logprobs`; `length_controlled`; `max_new_tokens`. The key is that of OPENAI_API_KEY.

    Raises: BenchmarkError without a judge that can be used, without data, and when the package fails.
    """
    options = request.suite.options
    if not options.get("judge_url") and not os.environ.get("OPENAI_API_KEY"):
        raise BenchmarkError(
            "suite=alpaca_eval: it needs a judge; set OPENAI_API_KEY, or give suite.options.judge_url=<endpoint> "
            "suite.options.judge_model=<name> of any OpenAI-compatible server"
        )
    references = read_references(request)[: request.suite.limit]
    table = length_table(request) if options["length_controlled"] else None
    check_judge("alpaca_eval", options.get("judge_url"), options.get("judge_model"))
    python = ENVIRONMENT.python(request.cache, request.log)
    settings = SamplingSettings(max_new_tokens=int(options["max_new_tokens"]))
    examples = [Example(reference["instruction"], "") for reference in references]
    answers = answers_of(evaluated, examples, [settings] * len(examples))
    outputs = [
        {"instruction": r["instruction"], "output": answer, "generator": "instruct-lit"}
        for r, answer in zip(references, answers, strict=True)
    ]
    for name, rows in (("model_outputs", outputs), ("reference_outputs", references)):
        (request.out_dir / f"{name}.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    asked = hashlib.sha256(repr([options.get(key) for key in ("judge_url", "logprobs")]).encode()).hexdigest()[:8]
    judge = f"{options['annotator']}-{options.get('judge_model') or 'own'}-{asked}"
    verdicts = request.cache / "benchmark" / f"alpaca_eval-{re.sub(r'[^a-zA-Z0-9_.-]', '_', judge)}.json"
    task = {key: options.get(key) for key in ("annotator", "judge_model", "logprobs")}
    task |= {"length_table": table and str(table), "verdicts": str(verdicts)}
    (request.out_dir / "task.json").write_text(json.dumps(task))
    variables = {"OPENAI_API_KEY": os.environ.get("OPENAI_API_KEY", "none"), "OPENAI_MAX_CONCURRENCY": "8"}
    if options.get("judge_url"):
        variables["OPENAI_API_BASE"] = str(options["judge_url"])
    driver = Path(__file__).with_name("compat_alpaca_eval.py").resolve()
    run_in(python, ["-P", str(driver)], request.out_dir, variables, request.log, "suite=alpaca_eval")
    return {"alpaca_eval": _figure(json.loads((request.out_dir / "result.json").read_text()), len(outputs))}


def read_references(request: RunRequest) -> list[dict[str, Any]]:
    """Reference responses with their instructions, from the file of the options, `data_dir`, or the hub."""
    given = request.suite.options.get("references")
    instead = "suite.options.references=<file with instruction and output>"
    path = Path(given).expanduser() if given else hub_file(request, REPO, FILE, instead)
    if not path.is_file():
        raise BenchmarkError(f"suite.options.references={given}: no such file")
    return read_rows(path, lambda r: {"generator": "reference", **r, **{k: r[k] for k in ("instruction", "output")}})


def length_table(request: RunRequest) -> Path:
    """The package's table for the length-controlled win rate, from `data_dir` or the hub.

    It holds the difficulty of each of the 805 instructions, and verdicts on deliberately short and long responses of
    the baseline, which regularise the fit.
    """
    path = hub_file(request, REPO, TABLE, "suite.options.length_controlled=false")
    with path.open(encoding="utf-8", newline="") as file:
        missing = COLUMNS - set(next(csv.reader(file), []))
    if missing:
        raise BenchmarkError(f"{path}: not AlpacaEval's table, it has no column {', '.join(sorted(missing))}")
    return path


def items_of(folder: Path, task: str, metric: str) -> Items:
    """The instructions with shares of the win; a verdict that could not be parsed is a tie."""
    rows = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    return [
        (row["instruction"], 0.5 if row.get("preference") is None else float(row["preference"]) - 1) for row in rows
    ]


def _figure(result: dict[str, Any], n: int) -> Figure:
    """Win rates as shares. A verdict that could not be parsed counts as a tie."""
    n_read = int(result["n_total"])
    rate = (result["win_rate"] / 100 * n_read + 0.5 * (n - n_read)) / n if n_read else 0.5
    others = {"n_unread_verdicts": float(n - n_read), "mean_characters": float(result["avg_length"])}
    if result.get("length_controlled_winrate") is not None:
        others["length_controlled_win_rate"] = result["length_controlled_winrate"] / 100
    error = result.get("standard_error")
    return Figure("win_rate", rate, error / 100 if error is not None else None, n, chance=None, others=others)
