"""Log-probabilities at their places: batched = computed alone without a cache."""

import pytest
import torch

from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.gpt import GPT
from instruct_lit.serving.logprobs import LogprobRecorder


@pytest.mark.parametrize("layouts", [True, False])
def test_log_probabilities_are_those_of_the_model(
    tiny_model: GPT, tokenizer: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch, layouts: bool
) -> None:
    """Prompts with a common beginning and of different lengths, in one batch; with a cache and by reading anew."""
    if not layouts:
        monkeypatch.setattr(tiny_model, "layout_length", 0)
    prompts = [[5, 6, 7, 8], [5, 6, 9], [5, 6, 7, 10, 11, 12]]
    engine = Engine(tiny_model, tokenizer)
    settings = SamplingSettings(max_new_tokens=4, temperature=0.7, seed=1)  # does not change the log-probabilities
    requests = [engine.prepare(prompt, settings, LogprobRecorder(3, reads_prompt=True)) for prompt in prompts]
    for request in requests:
        engine.enqueue(request)
    while engine.n_unfinished:
        engine.step()
    for request in requests:
        ids = request.prompt_ids + request.ids
        with torch.no_grad():
            expected = tiny_model(torch.tensor([ids]))[0].log_softmax(-1)
        assert isinstance(request.hook, LogprobRecorder)
        told = [*request.hook.prompt, *request.hook.response]
        assert [t.token_id for t in told] == ids and len(request.ids) == 4
        assert told[0].logprob is None and told[0].top == ()
        for place, token in enumerate(told[1:]):
            assert token.logprob == pytest.approx(expected[place, ids[place + 1]].item(), abs=1e-4)
            values, best = expected[place].topk(3)
            assert [i for i, _ in token.top] == best.tolist()
            assert [value for _, value in token.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_end_of_text_and_a_prompt_that_fills_the_context_are_scored(
    tiny_model: GPT, tokenizer: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(tiny_model, tokenizer)
    first = engine.generate([[1, 2, 3]], SamplingSettings(max_new_tokens=1))[0].ids[0]
    monkeypatch.setattr(engine.tokenizer, "eot_id", first)  # the model's first token closes the response
    ended = engine.prepare([1, 2, 3], SamplingSettings(max_new_tokens=9), LogprobRecorder(1))
    full = engine.prepare(list(range(64)), SamplingSettings(max_new_tokens=0), LogprobRecorder(0, reads_prompt=True))
    for request in (ended, full):
        engine.enqueue(request)
    while engine.n_unfinished:
        engine.step()
    assert isinstance(ended.hook, LogprobRecorder) and isinstance(full.hook, LogprobRecorder)
    assert (ended.finish_reason, ended.ids) == ("stop", []) and [t.token_id for t in ended.hook.response] == [first]
    assert (full.finish_reason, full.ids, len(full.hook.prompt)) == ("length", [], 64)
