"""Answers of a model to examples: generated in batches, kept as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from instruct_lit import __version__
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.records import is_encodable, read_records
from instruct_lit.core.data.template import Template
from instruct_lit.core.generation.engine import Engine, Request
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.errors import DataError
from instruct_lit.evaluation.answer_cache import AnswerCache
from instruct_lit.evaluation.metrics import exact

FIELDS = ("instruction", "input", "output")


def answer(
    engine: Engine,
    template: Template,
    examples: Sequence[tuple[int, Example, Sequence[int]]],
    settings: SamplingSettings,
    on_answered: Callable[[], None] | None = None,
    kept: AnswerCache | None = None,
) -> list[dict[str, Any]]:
    """Answer examples, each given as (id, example, prompt ids), and return a row for each.

    A row is the record with `id`, `response` and `finish_reason`: `stop` (end-of-text, or what the template puts
    behind a response) or `length`. A prompt that fills the model's context gets an empty response and
    `prompt_too_long`; an empty prompt is end-of-text, which GPT-2 takes for the beginning of a text. Answers in `kept`
    are not written again, new ones are kept as they come.
    """
    settings = replace(settings, stop=(*settings.stop, *closing(template)))
    kept, told = kept or AnswerCache(None), on_answered or (lambda: None)

    def key(prompt: Sequence[int]) -> tuple[Any, ...]:
        return ("answer", __version__, list(prompt), repr(settings), str(engine.dtype))

    def keep(request: Request) -> None:
        kept.add([(key(request.prompt_ids), (request.text, request.finish_reason))])
        told()

    prompts = [list(prompt) or [engine.tokenizer.eot_id] for _, _, prompt in examples]
    waiting = [prompt for prompt in prompts if len(prompt) < engine.context_length and kept.get(*key(prompt)) is None]
    for _ in range(len(prompts) - len(waiting)):
        told()
    engine.generate(waiting, settings, on_finished=keep)
    rows = []
    for (number, example, _), prompt in zip(examples, prompts, strict=True):
        response, reason = kept.get(*key(prompt)) or ("", "prompt_too_long")
        rows.append({"id": number, **example.as_record(), "response": response, "finish_reason": reason})
    return rows


def closing(template: Template) -> tuple[str, ...]:
    """The text that the template puts behind a response and that ends it, if there is one."""
    suffix = template.suffix(Example("", "")).strip()
    return (suffix,) if suffix else ()


def exact_match(rows: Sequence[dict[str, Any]]) -> float:
    """Share of rows whose answer is the wanted one, white space at the ends aside."""
    return sum(map(exact, rows)) / len(rows)


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def read_responses(path: Path, response_field: str) -> list[dict[str, Any]]:
    """Answers out of a file of records with their answers, whatever wrote it.

    What an earlier evaluation found out about an answer is left out, but for its loss, which needs the model. Raises
    DataError for a record without text in `instruction`, `output` or the answer's field, and for an `input` or a
    `history` of another kind.
    """
    rows: list[dict[str, Any]] = []
    for place, record in read_records(path.expanduser()):
        if isinstance(record, DataError):
            raise record
        row = {"id": len(rows), "input": "", **record} if isinstance(record, dict) else {}
        for field in ("instruction", "output", response_field):
            if not isinstance(row.get(field), str):
                raise DataError(f"{place}: no text in {field!r}; found: {', '.join(map(str, row)) or 'no fields'}")
        if not isinstance(row["input"] or "", str):
            raise DataError(f"{place}: 'input' must be text, found {row['input']!r:.60}")
        if not _is_history(row.get("history") or []):
            raise DataError(f"{place}: 'history' is a list of pairs [question, answer], found {row['history']!r:.60}")
        if not is_encodable(json.dumps(row, ensure_ascii=False, default=str)):  # no file could hold it
            raise DataError(f"{place}: it has broken characters (the text was decoded wrongly before)")
        response = row[response_field] if response_field in FIELDS else row.pop(response_field)
        loss, n_tokens = row.pop("loss", None), row.pop("n_response_tokens", None)
        measured = type(loss) is float and type(n_tokens) is int and n_tokens > 0
        kept = {key: value for key, value in row.items() if key not in ("scores", "leak", "judge")}
        losses = {"loss": loss, "n_response_tokens": n_tokens} if measured else {}
        rows.append({**kept, **losses, "response": response})
    if not rows:
        raise DataError(f"{path}: no record in it")
    return rows


def _is_history(turns: Any) -> bool:
    return isinstance(turns, list) and all(
        isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(text, str) for text in turn)
        for turn in turns
    )


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read what `write_jsonl` wrote; a missing file is empty."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]
