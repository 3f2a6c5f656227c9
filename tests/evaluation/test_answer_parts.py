"""Thoughts, final answer and calls in what a model wrote, and their metrics."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instruct_lit.datasets.conversation_texts import assistant_text
from instruct_lit.evaluation.answer_parts import Parts, parts_of
from instruct_lit.evaluation.metrics import METRICS, applicable, concerns, score
from tests.fixtures.conversations import CALLS

ADD = {"name": "add", "arguments": {"a": 1, "b": 2}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("It is 2.", Parts("It is 2.")),
        ("<think>\nSo.\n</think>\n\nIt is 2.", Parts("It is 2.", "So.")),
        ("So.\n</think>\n\nIt is 2.", Parts("It is 2.", "So.")),  # the prompt has opened it
        ("<think>\nSo", Parts("", "So", closed=False)),
        (f"I add.\n{CALL}\n{CALL}", Parts("I add.", calls=(ADD, ADD))),
        (CALL.removesuffix("\n</tool_call>"), Parts("", calls=(ADD,))),
        (CALL.replace('{"a": 1, "b": 2}', r'"{\"a\": 1, \"b\": 2}"'), Parts("", calls=(ADD,))),
        ("<tool_call>{oops}</tool_call>", Parts("<tool_call>{oops}</tool_call>", n_unreadable=1)),
        *(
            (text, Parts(text, n_unreadable=1))
            for text in (  # what JSON and UTF-8 do not have
                CALL.replace("1", value) for value in ("NaN", "1e999", r'"\ud83d"', r'{"\ud83d": 1}')
            )
        ),
        (
            CALL.replace('{"a": 1, "b": 2}', r'"{\"a\": -Infinity}"'),
            Parts(CALL.replace('{"a": 1, "b": 2}', r'"{\"a\": -Infinity}"'), n_unreadable=1),
        ),
        ("<tool_call>[1]</tool_call> a < b", Parts("<tool_call>[1]</tool_call> a < b", n_unreadable=1)),
    ],
)
def test_an_answer_is_read(text: str, parts: Parts) -> None:
    assert parts_of(text) == parts


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<>"), min_size=1, max_size=9).map(str.strip)


@given(thoughts=WORDS, text=WORDS, calls=st.lists(CALLS, max_size=2), opened=st.booleans())
@settings(max_examples=60)
def test_what_the_template_writes_is_read_back_and_only_grows(
    thoughts: str, text: str, calls: list[dict[str, Any]], opened: bool
) -> None:
    written = assistant_text({"content": text, "reasoning_content": thoughts, "tool_calls": calls})
    opened = opened and bool(thoughts)
    written = written.removeprefix("<think>\n") if opened else written
    whole = parts_of(written, opened)
    assert whole == Parts(text, thoughts or None, calls=tuple(call["function"] for call in calls))
    before = Parts("", "")
    for n in range(len(written) + 1):
        now = parts_of(written[:n], opened, finished=False)
        assert whole.text.startswith(now.text) and now.text.startswith(before.text)
        assert (whole.thoughts or "").startswith(now.thoughts or "") and whole.calls[: len(now.calls)] == now.calls
        before = now


def row(response: str, **own: Any) -> dict[str, Any]:
    calling = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": ADD}]}
    given_messages = [{"role": "user", "content": "1 + 2?"}, calling]
    output = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
    return {"instruction": "1 + 2?", "output": output, "messages": given_messages, "response": response, **own}


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (f"<think>\nI add.\n</think>\n\n{CALL}", (1, 1, 1, 1, 0)),
        (CALL.replace("2", "3"), (0, 1, 0, 0.5, 0)),
        (CALL.replace("2", "2.0"), (0, 1, 1, 1, 0)),  # the same number in JSON
        (CALL.replace("add", "sub"), (0, 0, 0, 0, 0)),
        ("It is 3.", (0, 0, 0, 0, 0)),
        (CALL.replace("{", "[", 1), (0, 0, 0, 0, 1)),
    ],
)
def test_calls_are_scored_by_name_and_arguments(response: str, expected: tuple[float, ...]) -> None:
    names = ("exact_match", "call_names", "calls_exact", "call_arguments", "unreadable_calls")
    assert tuple(METRICS[name](row(response)) for name in names) == expected


def test_the_final_answer_is_scored_without_its_thoughts() -> None:
    plain = {"instruction": "1 + 2?", "output": "<think>\nHm.\n</think>\n\n3"}
    rows = [
        {**plain, "response": "<think>\none and two\n</think>\n\n3"}, {**plain, "response": "<think>\nlong"},
        {**plain, "response": "3", "output": "3"},
    ]  # fmt: skip
    found = {name: value["mean"] for name, value in score(rows, ["exact_match", "empty", *applied(rows)]).items()}
    assert found == pytest.approx({"exact_match": 2 / 3, "empty": 1 / 3, "thought_words": 2.0, "thoughts_closed": 0.5})
    assert not concerns("calls_exact", rows[0]) and concerns("calls_exact", {**rows[2], "tools": [{}]})


def applied(rows: list[dict[str, Any]]) -> list[str]:
    return applicable(["thought_words", "thoughts_closed", "calls_exact"], rows)
