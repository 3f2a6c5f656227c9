"""Responses of a model to examples: generated in batches, stored as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from instruct_lit import __version__
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.generation.engine import Engine, Request
from instruct_lit.core.generation.sampling import SamplingSettings


class ResponseCache(Protocol):
    """Responses of earlier runs by request, a tuple of JSON values; `get` returns None for an unknown request."""

    def get(self, *request: Any) -> Any: ...
    def add(self, answers: Iterable[tuple[tuple[Any, ...], Any]]) -> None: ...


def answer(
    engine: Engine,
    template: Template,
    examples: Sequence[tuple[int, Example, Sequence[int]]],
    settings: SamplingSettings,
    on_answered: Callable[[], object] = lambda: None,
    cache: ResponseCache | None = None,
) -> list[dict[str, Any]]:
    """Answer examples, each given as (id, example, prompt ids), and return a row for each.

    A row is the record with `id`, `response` and `finish_reason`: `stop` (end-of-text, or the template's suffix),
    `length`, or `prompt_too_long` where the prompt fills the context; an empty prompt is replaced by end-of-text, which
    starts a text for GPT-2. Responses in `cache` are not generated again.
    """
    settings = replace(settings, stop=(*settings.stop, *closing(template)))
    found: dict[tuple[int, ...], tuple[str, str | None]] = {}

    def key(prompt: Sequence[int]) -> tuple[Any, ...]:
        return ("answer", __version__, list(prompt), repr(settings), str(engine.dtype))

    def finished(request: Request) -> None:
        found[tuple(request.prompt_ids)] = request.text, request.finish_reason
        if cache is not None:
            cache.add([(key(request.prompt_ids), (request.text, request.finish_reason))])
        on_answered()

    prompts = [tuple(prompt) or (engine.tokenizer.eot_id,) for _, _, prompt in examples]
    waiting = []
    for prompt in prompts:
        cached = cache.get(*key(prompt)) if cache is not None else None
        if cached is None and len(prompt) < engine.context_length:
            waiting.append(prompt)
            continue
        if cached is not None:
            found[prompt] = tuple(cached)
        on_answered()
    engine.generate(waiting, settings, on_finished=finished)
    rows = []
    for (number, example, _), prompt in zip(examples, prompts, strict=True):
        response, reason = found.get(prompt, ("", "prompt_too_long"))
        rows.append({"id": number, **example.as_record(), "response": response, "finish_reason": reason})
    return rows


def closing(template: Template) -> tuple[str, ...]:
    """The text that the template puts after a response and that ends it, as stop texts."""
    suffix = template.suffix(Example("", "")).strip()
    return (suffix,) if suffix else ()


def exact(row: Mapping[str, Any]) -> float:
    """1 if the response equals the reference, leading and trailing white space aside, otherwise 0."""
    return float(row["response"].strip() == row["output"].strip())


def exact_match(rows: Sequence[Mapping[str, Any]]) -> float:
    """Share of rows whose response equals the reference."""
    return sum(map(exact, rows)) / len(rows)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read what `write_jsonl` wrote; a missing file is empty."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]
