"""What is certain of a text, and which prompts fit into the context."""

import pytest

from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.request import Request
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.gpt import GPT
from instruct_lit.errors import DataError
from instruct_lit.serving.scheduler import stable_text
from tests.core.generation.streaming import pieces_of


@pytest.mark.parametrize(
    ("text", "stops", "finished", "expected"),
    [
        ("one two", (), None, "one two"),
        ("one two\ufffd", (), None, "one two"),
        ("one\n\n##", ("\n\n### In", "zz"), None, "one"),
        ("one\n\n##", ("\n\n### In",), "length", "one\n\n##"),
        ("abab", ("abac",), None, "ab"),
        ("ab", ("ab",), None, "ab"),  # a whole stop text would have ended it; its parts do not count alone
    ],
)
def test_what_no_later_token_can_change(text: str, stops: tuple, finished, expected: str) -> None:
    request = Request([1], SamplingSettings(stop=stops), text=text, finish_reason=finished)
    assert stable_text(request) == expected


def test_the_earliest_stop_text_ends_the_answer(tokenizer: GPT2Tokenizer) -> None:
    request = Request([1], SamplingSettings(stop=("three", "two")))
    reasons = [request.extend([i], tokenizer, 99) for i in tokenizer.encode("one two three")]
    assert (request.text, reasons[:2]) == ("one ", [None, "stop"])


def test_a_prompt_that_fills_the_context_can_be_read_but_not_continued(
    tiny_model: GPT, tokenizer: GPT2Tokenizer
) -> None:
    engine, prompt = Engine(tiny_model, tokenizer), list(range(64))
    request = engine.prepare(prompt, SamplingSettings(max_new_tokens=0))
    engine.enqueue(request)
    engine.step()
    assert (request.finish_reason, request.ids) == ("length", [])
    assert engine.n_unfinished == 0
    with pytest.raises(
        DataError, match="a prompt has 64 tokens; allowed are 1 to 63, the model's context minus one token"
    ):
        engine.prepare(prompt, SamplingSettings(max_new_tokens=1))
    with pytest.raises(DataError, match="a prompt has 65 tokens; allowed are 1 to 64, the model's context"):
        engine.prepare([*prompt, 1], SamplingSettings(max_new_tokens=0))


def test_streamed_pieces_hold_nothing_of_a_stop_text(tiny_model: GPT, tokenizer: GPT2Tokenizer) -> None:
    engine = Engine(tiny_model, tokenizer)
    whole = engine.generate([[1, 2, 3]], SamplingSettings(max_new_tokens=6))[0].text
    stop = whole[len(whole) // 2 :][:4]
    pieces = pieces_of(engine, [1, 2, 3], SamplingSettings(max_new_tokens=6, stop=(stop,)))
    assert "".join(pieces) == whole[: whole.index(stop)]
