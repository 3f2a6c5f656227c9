"""Small files with one fault each, which lie beside the repository; skipped without them."""

from pathlib import Path

import pytest

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.records import FileSource
from instruct_lit.errors import DataError

FAULTS = Path(__file__).resolve().parents[3] / "shared" / "faults"
pytestmark = pytest.mark.skipif(not FAULTS.is_dir(), reason="../shared/faults is not here")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("surplus_comma.csv", "record 1 (line 2): 4 cells, but the header has 2 (instruction, output)"),
        ("short_row.csv", "record 1 (line 2): 2 cells, but the header has 3 (instruction, input, output)"),
        ("io_only.jsonl", "no field 'instruction' for the instruction; found: input, output (see data.columns)"),
        ("content_parts_value.jsonl", "messages[0], content[0]: 'value' cannot be trained on"),
    ],
)
def test_nothing_is_lost_silently(name: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        list(FileSource(str(FAULTS / name)))
    assert message in str(caught.value) and str(caught.value).startswith(str(FAULTS / name))


def test_thoughts_are_kept() -> None:
    first = next(iter(FileSource(str(FAULTS / "reasoning_content.jsonl"))))
    assert first.messages[1] == {"role": "assistant", "content": "1", "reasoning_content": "Counting on from 0."}


def test_the_hint_leads_to_the_right_examples() -> None:
    first = next(iter(FileSource(str(FAULTS / "io_only.jsonl"), {"instruction": "input"})))
    assert first == Example("How many legs have 1 cats?", "4 legs.")


def test_skipped_rows_are_counted_with_their_reason() -> None:
    source = FileSource(str(FAULTS / "surplus_comma.csv"), on_bad_record="skip")
    n_kept = len(list(source))
    (reason,) = source.notes.n_bad
    assert source.notes.n_records == n_kept + source.notes.n_bad[reason] and "cells, but the header has" in reason
