"""Answers to examples: stops, prompts too long, exact match, files."""

from pathlib import Path

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.responses import answer, exact, write_jsonl
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.gpt import GPT
from instruct_lit.evaluation.answer_files import read_jsonl

TEMPLATE = Template("short", "{{ instruction }}: {{ response }}")


def test_rows_in_the_order_of_the_examples(tiny_model: GPT, tokenizer: GPT2Tokenizer) -> None:
    examples = [
        (i, Example(f"word {i}" * n, "x", extra={"level": i}), [1, 2, 3] * n) for i, n in ((7, 1), (3, 40), (5, 2))
    ]
    done = []
    rows = answer(
        Engine(tiny_model, tokenizer), TEMPLATE, examples, SamplingSettings(max_new_tokens=3), lambda: done.append(1)
    )
    assert [row["id"] for row in rows] == [7, 3, 5]
    assert [row["finish_reason"] for row in rows] == ["length", "prompt_too_long", "length"]
    assert rows[1]["response"] == "" and rows[0]["response"] and rows[0]["level"] == 7
    assert len(done) == 3


def test_sampled_responses_do_not_share_their_random_numbers(tiny_model: GPT, tokenizer: GPT2Tokenizer) -> None:
    """With one stream for all, every response of a seed would be likely or unlikely together."""
    sampled, given = SamplingSettings(max_new_tokens=1, temperature=1.0, seed=3), []
    engine = Engine(tiny_model, tokenizer)
    engine.generate = lambda prompts, settings, **_: given.append(settings)  # type: ignore[method-assign,assignment]
    examples = [(i, Example("a", "b"), [1, 2, i]) for i in range(4)]
    answer(engine, TEMPLATE, examples, sampled)
    answer(engine, TEMPLATE, examples[::-1], sampled)  # in any order, on any rank
    assert len({one.seed for one in given[0]}) == 4 and given[0] == given[1][::-1]
    assert given[0][0].seed == sampled.of_prompt((1, 2, 0)).seed == sampled.of_prompt([1, 2, 0]).seed


def test_the_suffix_of_the_template_ends_a_response(tiny_model: GPT, tokenizer: GPT2Tokenizer) -> None:
    examples = [(0, Example("a", "b"), [1, 2, 3])]
    (whole,) = answer(Engine(tiny_model, tokenizer), TEMPLATE, examples, SamplingSettings(max_new_tokens=6))
    middle = whole["response"][3:6]
    (cut,) = answer(
        Engine(tiny_model, tokenizer),
        Template("suffix", "{{ response }}" + middle),
        examples,
        SamplingSettings(max_new_tokens=6),
    )
    assert cut["response"] == whole["response"][: whole["response"].index(middle)] and cut["finish_reason"] == "stop"


def test_an_empty_prompt_starts_from_end_of_text(tiny_model: GPT, tokenizer: GPT2Tokenizer) -> None:
    (row,) = answer(
        Engine(tiny_model, tokenizer), TEMPLATE, [(0, Example("", "b"), [])], SamplingSettings(max_new_tokens=2)
    )
    (expected,) = Engine(tiny_model, tokenizer).generate([[tokenizer.eot_id]], SamplingSettings(max_new_tokens=2))
    assert row["response"] == expected.text


def test_exact_match_ignores_white_space_at_the_ends_only() -> None:
    pairs = [("a b", " a b\n"), ("a b", "a  b"), ("A", "a"), ("x", "x")]
    assert [exact({"output": o, "response": r}) for o, r in pairs] == [1, 0, 0, 1]


def test_json_lines_come_back(tmp_path: Path) -> None:
    rows = [{"response": "é\n🙂\u2028"}, {"response": ""}]
    write_jsonl(tmp_path / "r.jsonl", rows)
    assert read_jsonl(tmp_path / "r.jsonl") == rows and read_jsonl(tmp_path / "none.jsonl") == []
