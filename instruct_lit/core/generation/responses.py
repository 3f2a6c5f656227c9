"""Responses of a model to examples: generated in batches, stored as JSON lines."""

import json
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.generation.engine import Engine, Request
from instruct_lit.core.generation.sampling import SamplingSettings

CachedAnswers = MutableMapping[tuple[int, ...], tuple[str, str | None]]  # response, finish reason by prompt ids
FINAL_TEXT: list[Callable[[str], str]] = [str.strip]  # the final answer in a text; `evaluation` leaves out thoughts


def answer(
    engine: Engine,
    template: Template,
    examples: Sequence[tuple[int, Example, Sequence[int]]],
    settings: SamplingSettings,
    on_answered: Callable[[], object] = lambda: None,
    cached: CachedAnswers | None = None,
) -> list[dict[str, Any]]:
    """Answer examples, each given as (id, example, prompt ids), and return a row for each.

    A row is the record with `id`, `response` and `finish_reason`: `stop` (end-of-text, or the template's suffix),
    `length`, or `prompt_too_long` where the prompt fills the context; an empty prompt is replaced by end-of-text, which
    starts a text for GPT-2. Responses in `cached` are not generated again, and new ones are added to it at once.
    """
    settings = replace(settings, stop=(*settings.stop, *closing(template)))
    found: CachedAnswers = {} if cached is None else cached

    def finished(request: Request) -> None:
        found[tuple(request.prompt_ids)] = request.text, request.finish_reason
        on_answered()

    prompts = [tuple(prompt) or (engine.tokenizer.eot_id,) for _, _, prompt in examples]
    waiting = [prompt for prompt in prompts if prompt not in found and len(prompt) < engine.context_length]
    for _ in range(len(prompts) - len(waiting)):
        on_answered()
    engine.generate(waiting, [settings.of_prompt(prompt) for prompt in waiting], on_finished=finished)
    rows = []
    for (number, example, _), prompt in zip(examples, prompts, strict=True):
        response, reason = found.get(prompt, ("", "prompt_too_long"))
        rows.append({"id": number, **example.as_record(), "response": response, "finish_reason": reason})
    return rows


def closing(template: Template) -> tuple[str, ...]:
    """The text that the template puts after a response and that ends it, as stop texts."""
    return tuple(filter(None, [template.suffix(Example("", "")).strip()]))


def exact(row: Mapping[str, Any]) -> float:
    """1 if the final answer equals that of the reference, leading and trailing white space aside, otherwise 0."""
    return float(FINAL_TEXT[0](row["response"]) == FINAL_TEXT[0](row["output"]))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
