"""Suites whose answers a language model judges: MT-Bench and Arena-Hard; and the check of other packages' judges."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from instruct_lit.core.data.example import Example
from instruct_lit.core.generation.responses import closing, write_jsonl
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.errors import InstructLitError
from instruct_lit.evaluation.answer_cache import AnswerCache
from instruct_lit.evaluation.judging.endpoints import OpenAIEndpoint
from instruct_lit.evaluation.judging.judge import Judge, require_judged
from instruct_lit.evaluation.remote_model import RemoteModel, messages_of
from instruct_lit.suites.evaluated_model import EvaluatedModel
from instruct_lit.suites.suite import BenchmarkError

FILE = "judged.jsonl"  # answers with their verdicts, in the folder of a model


def answers_of(
    model: EvaluatedModel | RemoteModel, examples: Sequence[Example], settings: Sequence[SamplingSettings]
) -> list[str]:
    """A model's answers to the last turns of conversations.

    A template without a form for earlier turns gets the conversation as one instruction.
    """
    if isinstance(model, RemoteModel):
        return [reply["text"] for reply in model.write([messages_of(e.as_record()) for e in examples], settings)]
    if not model.template.has_turns:
        examples = [
            Example("\n\n".join([*(t for turn in e.history for t in turn), e.instruction]), "") for e in examples
        ]
    model.expect(len(examples))
    prompts = [tuple(model.template.prompt_ids(example, model.tokenizer)) for example in examples]
    return model.write(prompts, [replace(own, stop=closing(model.template)) for own in settings])


def save(folder: Path, rows: Sequence[Mapping[str, Any]], verdict: Mapping[str, Any]) -> None:
    """Write judged answers and the judge's figures; then raise JudgeError where they are not judged."""
    write_jsonl(folder / FILE, rows)
    (folder / "judge.json").write_text(json.dumps(verdict, indent=1) + "\n")
    require_judged(verdict, FILE)


def by_value(rows: Sequence[dict[str, Any]], field: str = "category") -> dict[Any, list[dict[str, Any]]]:
    """The rows of each value of a field."""
    values = dict.fromkeys(row[field] for row in rows)
    return {value: [row for row in rows if row[field] == value] for value in values}


def first_of_each(rows: Sequence[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    """The first `limit` rows of each category, all for None."""
    return [row for of_category in by_value(rows).values() for row in of_category[:limit]]


def check_judge(suite: str, url: str | None, model: str | None) -> None:
    """Raise BenchmarkError for a judge that cannot be used; the packages would retry for hours."""
    key = os.environ.get("OPENAI_API_KEY")
    try:
        given = url or "https://api.openai.com/v1", model or "gpt-4-1106-preview", key
        endpoint = OpenAIEndpoint(*given, n_retries=1, timeout_s=30.0)
        Judge(endpoint, AnswerCache(None)).check()
    except InstructLitError as error:
        message = str(error).replace("judge.url", "suite.options.judge_url")
        message = message.replace("judge.api_key_env names the variable that holds it", "it is that of OPENAI_API_KEY")
        raise BenchmarkError(f"suite={suite}: {message}") from error
