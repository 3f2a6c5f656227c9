"""What is certain of a text, and log-probabilities at their places: batched = computed alone without a cache."""

import pytest
import torch

from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.request import Request
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.gpt import GPT
from instruct_lit.errors import DataError


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
    request = Request(0, [1], SamplingSettings(stop=stops), text=text, finish_reason=finished)
    assert request.stable_text == expected


def test_the_earliest_stop_text_ends_the_answer(tokenizer: GPT2Tokenizer) -> None:
    request = Request(0, [1], SamplingSettings(stop=("three", "two")))
    reasons = [request.append(i, tokenizer, 99) for i in tokenizer.encode("one two three")]
    assert (request.text, reasons[:2]) == ("one ", [None, "stop"])


@pytest.mark.parametrize("layouts", [True, False])
def test_log_probabilities_are_those_of_the_model(
    tiny_model: GPT, tokenizer: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch, layouts: bool
) -> None:
    """Prompts with a common beginning and of different lengths, in one batch; with a cache and by reading anew."""
    if not layouts:
        monkeypatch.setattr(tiny_model, "no_layouts", "for this test")
    prompts = [[5, 6, 7, 8], [5, 6, 9], [5, 6, 7, 10, 11, 12]]
    engine = Engine(tiny_model, tokenizer)
    settings = SamplingSettings(max_new_tokens=4, temperature=0.7, seed=1)  # does not change what is told
    requests = [engine.prepare(prompt, settings, n_logprobs=3, of_prompt=True) for prompt in prompts]
    for request in requests:
        engine.enqueue(request)
    while engine.n_unfinished:
        engine.step()
    for request in requests:
        ids = request.prompt_ids + request.ids
        with torch.no_grad():
            expected = tiny_model(torch.tensor([ids]))[0].log_softmax(-1)
        told = [*request.prompt_logprobs, *request.logprobs]
        assert [t.token_id for t in told] == ids and len(request.ids) == 4
        assert told[0].logprob is None and told[0].top == ()
        for place, token in enumerate(told[1:]):
            assert token.logprob == pytest.approx(expected[place, ids[place + 1]].item(), abs=1e-4)
            values, best = expected[place].topk(3)
            assert [i for i, _ in token.top] == best.tolist()
            assert [value for _, value in token.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_a_prompt_that_fills_the_context_can_be_scored_but_not_continued(
    tiny_model: GPT, tokenizer: GPT2Tokenizer
) -> None:
    engine, prompt = Engine(tiny_model, tokenizer), list(range(64))
    request = engine.prepare(prompt, SamplingSettings(max_new_tokens=0), n_logprobs=0, of_prompt=True)
    engine.enqueue(request)
    engine.step()
    assert (request.finish_reason, request.ids, len(request.prompt_logprobs)) == ("length", [], 64)
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
    pieces = list(engine.stream([1, 2, 3], SamplingSettings(max_new_tokens=6, stop=(stop,))))
    assert "".join(pieces) == whole[: whole.index(stop)]
