"""MT-Bench (Zheng et al. 2023): questions of two turns in eight categories, each answer scored by a judge."""

from pathlib import Path
from statistics import fmean
from typing import Any

from instruct_lit.core.data.example import Example
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.evaluation.answer_files import read_jsonl
from instruct_lit.evaluation.remote_model import RemoteModel
from instruct_lit.evaluation.statistics import clustered_error
from instruct_lit.suites.evaluated_model import EvaluatedModel
from instruct_lit.suites.hub_files import hub_file, read_rows
from instruct_lit.suites.judged_answers import FILE, answers_of, by_value, first_of_each, save
from instruct_lit.suites.suite import Figure, Items, RunRequest

REPO, QUESTIONS = "HuggingFaceH4/mt_bench_prompts", "raw/question.jsonl"


def run(model: EvaluatedModel | RemoteModel, request: RunRequest) -> dict[str, Figure]:
    """The mean score of each category over both turns; an unparsed verdict has the lowest score.

    Keys of `options` (conf/suite/mt_bench.yaml): `max_new_tokens`; `temperatures` by category, greedy for others.

    Raises: BenchmarkError without the questions, JudgeError where the judge cannot be used or read.
    """
    assert request.judge is not None
    options, judge = request.suite.options, request.judge
    questions = first_of_each(read_rows(hub_file(request, REPO, QUESTIONS), question_of), request.suite.limit)
    settings = [
        SamplingSettings(int(options["max_new_tokens"]), float(options["temperatures"].get(q["category"], 0)))
        for q in questions
    ]
    rows: list[dict[str, Any]] = []
    histories: list[tuple[tuple[str, str], ...]] = [()] * len(questions)
    for turn in (0, 1):
        pairs = list(zip(questions, histories, strict=True))
        answers = answers_of(model, [Example(q["turns"][turn], "", history=h) for q, h in pairs], settings)
        rows += [
            {
                "id": q["id"], "category": q["category"], "turn": turn + 1, "history": history,
                "instruction": q["turns"][turn], "input": "", "output": q["references"][turn], "response": answer,
            }
            for (q, history), answer in zip(pairs, answers, strict=True)
        ]  # fmt: skip
        histories = [((q["turns"][turn], answer),) for q, answer in zip(questions, answers, strict=True)]
    save(request.out_dir, rows, judge.score(rows))
    return {category: _figure(of_category, judge.scale[0]) for category, of_category in by_value(rows).items()}


def question_of(record: Any) -> dict[str, Any]:
    """A question with its two turns and their references, which are empty where there are none."""
    turns = record["turns"][:2]
    references = [*(record.get("reference") or ()), "", ""][: len(turns)]
    return {
        "id": record["question_id"], "category": record["category"], "turns": [turns[0], turns[1]],
        "references": references,
    }  # fmt: skip


def items_of(folder: Path, task: str, metric: str) -> Items:
    """The questions of a category with the mean score of their turns; None where a verdict could not be parsed."""
    found: Items = []
    for turns in by_value(by_value(read_jsonl(folder / FILE))[task], "id").values():
        scores = [row["judge"]["value"] for row in turns]
        found.append(("\n\n".join(row["instruction"] for row in turns), None if None in scores else fmean(scores)))
    return found


def _figure(rows: list[dict[str, Any]], low: float) -> Figure:
    values = [low if row["judge"]["value"] is None else row["judge"]["value"] for row in rows]
    ids, n_turns = [row["id"] for row in rows], len(rows) // 2
    return Figure(
        metric="score",
        value=fmean(values),
        stderr=clustered_error(values, ids) if n_turns > 1 else None,
        n=n_turns,
        others={
            "first_turn": fmean(values[:n_turns]), "second_turn": fmean(values[n_turns:]),
            "n_unread_verdicts": float(sum(row["judge"]["value"] is None for row in rows)),
        },
    )  # fmt: skip
