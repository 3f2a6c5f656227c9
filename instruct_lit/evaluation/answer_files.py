"""Files of records with responses, of any origin, as rows to evaluate."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instruct_lit.core.data.example import FIELDS as FIELDS_OF_EXAMPLE
from instruct_lit.core.data.records import read_records
from instruct_lit.errors import DataError
from instruct_lit.evaluation.checks import FIELD, FUNCTION, check_record

FIELDS = ("instruction", "input", "output")


def read_responses(path: Path, response_field: str, keep: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Read records with their responses from a file of any origin; `response_field` holds the response.

    With `response_field` "output", as in AlpacaEval's files, there is no reference: `output` is then empty. The results
    of an earlier evaluation are dropped, except those in `keep`, and the loss, which needs the model.

    Raises:
        DataError: a record without text in `instruction`, `output` or `response_field`, or with an `input` or
            `history` of a wrong type, or with invalid `checks`.
    """
    rows: list[dict[str, Any]] = []
    for place, record in read_records(path.expanduser()):
        if isinstance(record, DataError):
            raise record
        row = {"id": len(rows), "input": "", **record} if isinstance(record, dict) else {}
        if row.get("messages"):
            row = _with_texts(row, place)
        for field in ("instruction", "output", response_field):
            if not isinstance(row.get(field), str):
                raise DataError(f"{place}: no text in {field!r}; found: {', '.join(map(str, row)) or 'no fields'}")
        if not isinstance(row["input"] or "", str):
            raise DataError(f"{place}: 'input' must be text, found {row['input']!r:.60}")
        turns = row.get("history") or []
        if not (isinstance(turns, list) and all(map(_is_turn, turns))):
            raise DataError(f"{place}: 'history' is a list of pairs [question, answer], found {row['history']!r:.60}")
        if re.search("[\ud800-\udfff]", json.dumps(row, ensure_ascii=False, default=str)):
            raise DataError(f"{place}: lone surrogates, the text was decoded with a wrong encoding; repair the file")
        if row.get(FIELD) is not None:
            check_record(row[FIELD], place)
        response = row[response_field] if response_field in FIELDS else row.pop(response_field)
        row |= {"output": ""} if response_field == "output" else {}
        loss, n_tokens = row.get("loss"), row.get("n_response_tokens")
        has_loss = type(loss) is float and math.isfinite(loss) and type(n_tokens) is int and n_tokens > 0
        of_model = set() if has_loss else {"loss", "n_response_tokens"}
        dropped = ({"scores", "leak", "judge", "people", FUNCTION} | of_model) - {*keep}
        rows.append({**{key: value for key, value in row.items() if key not in dropped}, "response": response})
    if not rows:
        raise DataError(f"{path}: it has no records")
    return rows


def _with_texts(row: dict[str, Any], place: str) -> dict[str, Any]:
    """A record with `messages` in the form of our own; without an answer at their end `output` is the reference."""
    from instruct_lit.datasets.conversations import FORMS  # not before a record needs it: the folder may be absent

    given, answer = row["messages"], {"role": "assistant", "content": "-"}
    last = given[-1] if isinstance(given, list) else None
    is_open = isinstance(last, dict) and last.get("role") != answer["role"]
    read = {"messages": [*given, answer] if is_open else given, "tools": row.get("tools")}
    found = FORMS["messages"].read(read, place, {name: name for name in FIELDS_OF_EXAMPLE}).as_record()
    own = {key: value for key, value in row.items() if key not in read}
    return {**found, **({"output": "", "messages": []} if is_open else {}), **own}


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(text, str) for text in turn)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read what `write_jsonl` wrote; a missing file is empty. Raises: DataError with the place of a damaged line."""
    found = list(read_records(path)) if path.exists() else []
    for place, row in found:
        if not isinstance(row, dict):
            raise row if isinstance(row, DataError) else DataError(f"{place}: not a JSON object")
    return [row for _, row in found]


def read_metrics(run: Path) -> dict[str, Any]:
    """The `metrics.json` of a run folder; a missing file is empty. Raises: DataError for a damaged one."""
    path = run / "metrics.json"
    try:
        found = json.loads(path.read_bytes()) if path.exists() else {}
        problem = None if isinstance(found, dict) else "not a JSON object"
    except (OSError, ValueError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
    if problem:
        raise DataError(f"{path}: damaged ({problem}); give another run, or resume this one, which writes it anew")
    return found
