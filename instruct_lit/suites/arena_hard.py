"""Arena-Hard (Li et al. 2024): hard questions of users; a judge compares each answer with that of a baseline model."""

from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from instruct_lit.core.data.example import Example
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.evaluation.answer_files import read_jsonl
from instruct_lit.evaluation.comparison import style_controlled
from instruct_lit.evaluation.remote_model import RemoteModel
from instruct_lit.evaluation.statistics import clustered_error
from instruct_lit.suites.evaluated_model import EvaluatedModel
from instruct_lit.suites.hub_files import hub_file, read_rows
from instruct_lit.suites.judged_answers import FILE, answers_of, by_value, first_of_each, save
from instruct_lit.suites.suite import BenchmarkError, Figure, Items, RunRequest

REPO = "lmarena-ai/arena-hard-auto"
N_FOR_STYLE = 40  # questions, ten for each term of style; of fewer the rate at equal style is that of no answer seen


def run(model: EvaluatedModel | RemoteModel, request: RunRequest) -> dict[str, Figure]:
    """The win rate against the baseline of each category, and the win rate at equal style.

    Keys of `options` (conf/suite/arena_hard.yaml): `version` of the questions; `baselines`, the model of each category;
    `max_new_tokens`.

    Raises: BenchmarkError without questions or baseline answers, JudgeError where the judge cannot be used or read.
    """
    assert request.judge is not None
    options, folder = request.suite.options, f"data/{request.suite.options['version']}"
    baselines = dict(options["baselines"])
    questions = read_rows(hub_file(request, REPO, f"{folder}/question.jsonl"), question_of)
    questions = first_of_each([q for q in questions if q["category"] in baselines], request.suite.limit)
    answered = {
        category: dict(read_rows(hub_file(request, REPO, f"{folder}/model_answer/{name}.jsonl"), answer_of))
        for category, name in baselines.items()
    }
    if missing := [q["id"] for q in questions if q["id"] not in answered[q["category"]]]:
        raise BenchmarkError(
            f"suite={request.suite.name}: {len(missing)} questions without a baseline answer, {missing[0]}"
        )
    settings = SamplingSettings(int(options["max_new_tokens"]))
    examples = [Example(question["instruction"], "") for question in questions]
    answers = answers_of(model, examples, [settings] * len(questions))
    rows = [
        {**q, "input": "", "output": "", "response": answer, "response_b": answered[q["category"]][q["id"]]}
        for q, answer in zip(questions, answers, strict=True)
    ]
    pairs = [(row, {**row, "response": row["response_b"]}) for row in rows]
    save(request.out_dir, rows, request.judge.compare(pairs, rows))
    return {category: _figure(of_category) for category, of_category in by_value(rows).items()}


def question_of(record: Any) -> dict[str, Any]:
    """A question with its number, category and text."""
    return {"id": record["uid"], "category": record["category"], "instruction": record["prompt"]}


def answer_of(record: Any) -> tuple[str, str]:
    """The number of a question, and the last message of its answer."""
    content = record["messages"][-1]["content"]
    return record["uid"], content if isinstance(content, str) else content["answer"]


def items_of(folder: Path, task: str, metric: str) -> Items:
    """The questions of a category with the shares of the win."""
    return [(row["instruction"], row["judge"]["share"]) for row in by_value(read_jsonl(folder / FILE))[task]]


def _figure(rows: list[dict[str, Any]]) -> Figure:
    shares = [row["judge"]["share"] for row in rows]
    texts = [(row["response"], row["response_b"]) for row in rows]
    unread = sum(verdict["value"] is None for row in rows for verdict in row["judge"]["verdicts"])
    others = {"n_unread_verdicts": float(unread)}
    if len(rows) >= N_FOR_STYLE:
        others["style_controlled_win_rate"] = style_controlled(np.array(shares), texts)
    error = clustered_error(shares, range(len(shares))) if len(shares) > 1 else None
    return Figure("win_rate", fmean(shares), error, len(shares), others=others)
