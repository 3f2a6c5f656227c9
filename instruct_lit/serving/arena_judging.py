"""The arena without people: questions from a file, answers of all models, and a judge's verdicts as votes."""

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from instruct_lit.core.bundle import bundle_of
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.records import read_records
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.responses import answer
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.errors import DataError
from instruct_lit.evaluation.comparison import questions_of as both_orders
from instruct_lit.evaluation.judging.judge import Judge
from instruct_lit.evaluation.judging.prompt import JudgePrompt
from instruct_lit.evaluation.judging.response_judge import ask_judge
from instruct_lit.serving.arena_rounds import Question, VoteFile
from instruct_lit.serving.chat_model import ChatModel

_WINNERS = {"A": "model_a", "B": "model_b", "tie": "tie"}


def read_questions(path: str | None, runs: Sequence[str], n_questions: int | None = None) -> list[Question]:
    """The distinct questions of a file of records.

    Args:
        path: None takes the test set of the first run folder that has `responses.jsonl`, or no questions.
        n_questions: only the first so many.

    Raises: DataError for a record without text in `instruction`, or with another `input` than text.
    """
    responses = (bundle_of(run).parent / "responses.jsonl" for run in runs)
    file = Path(path).expanduser() if path else next((p for p in responses if p.is_file()), None)
    if file is None:
        return []
    questions: dict[Question, None] = {}
    for place, record in read_records(file):
        if isinstance(record, DataError):
            raise record
        if not isinstance(record, dict) or not isinstance(record.get("instruction"), str):
            raise DataError(f"{place}: no text in 'instruction'; give records with an instruction")
        input_text = record.get("input") or ""
        if not isinstance(input_text, str):
            raise DataError(f"{place}: 'input' is {input_text!r:.60}; it must be text")
        questions[record["instruction"], input_text] = None
    return list(questions)[:n_questions]


def judge_votes(
    chat_models: Sequence[ChatModel],
    questions: Sequence[Question],
    settings: SamplingSettings,
    engine_options: dict[str, Any],
    judge: Judge,
    prompt: JudgePrompt,
    votes: VoteFile,
) -> None:
    """Let a judge compare every two models' responses to the questions in both orders, and append its verdicts.

    A verdict that cannot be parsed is not a vote; their number is printed. A vote that the file has is not cast again.
    """
    rows = {}
    for chat_model in chat_models:
        engine = Engine(chat_model.model, chat_model.tokenizer, **engine_options)
        examples = [Example(instruction, "", input_text) for instruction, input_text in questions]
        prompts = [(i, example, chat_model.prompt_ids(example)) for i, example in enumerate(examples)]
        rows[chat_model.name] = answer(engine, chat_model.template, prompts, settings)
        print(f"{chat_model.name}: {len(examples)} responses", flush=True)
    texts: list[str] = []
    battles = []
    for a, b in combinations(rows, 2):
        for row_a, row_b in zip(rows[a], rows[b], strict=True):
            texts += map(prompt.render, both_orders((row_a, row_b)))
            battles += [(a, row_a, b, row_b), (b, row_b, a, row_a)]
    verdicts = ask_judge(judge, prompt, texts)
    found = [
        {
            "judge": judge.endpoint.model, "model_a": first, "model_b": second, "winner": _WINNERS[verdict.value],
            "instruction": row_a["instruction"], "input": row_a["input"], "response_a": row_a["response"],
            "response_b": row_b["response"],
        }
        for (first, row_a, second, row_b), verdict in zip(battles, verdicts, strict=True)
        if verdict.value is not None
    ]  # fmt: skip
    saved = {json.dumps(vote, sort_keys=True) for vote in votes.read()}
    new = [vote for vote in found if json.dumps(vote, sort_keys=True) not in saved]
    for vote in new:
        votes.append(vote)
    again = f", {len(found) - len(new)} were in it" if len(new) < len(found) else ""
    n_unparsed = len(verdicts) - len(found)
    print(f"{len(new)} votes appended to {votes.path}{again}, {n_unparsed} verdicts could not be parsed")
