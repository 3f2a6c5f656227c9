"""The one decoder: batched = one by one = naive recomputation; stops, streams, cancels."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.request import Hook, Request
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.gpt import GPT
from instruct_lit.errors import DataError
from tests.core.generation.streaming import pieces_of


@pytest.fixture
def model(tiny_model: GPT) -> GPT:
    """Sharper than at initialisation, so that texts differ and do not hang on rounding."""
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    return tiny_model


def prompts(n: int, longest: int = 30) -> list[list[int]]:
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, longest, (n,), generator=random).tolist()
    return [[5, 6, 7, *torch.randint(0, 50256, (length,), generator=random).tolist()] for length in lengths]


@torch.no_grad()
def naive(model: GPT, prompt: list[int], n_tokens: int, eot_id: int) -> list[int]:
    """Greedy decoding that computes everything anew for every token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + n_tokens and len(ids) < model.config.context_length:
        token = int(model(torch.tensor([ids], device=model.head_weight.device))[0, -1].argmax())
        if token == eot_id:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("max_rows", [pytest.param(1, marks=pytest.mark.slow), 3, 32])
def test_trap_12_greedy_batched_is_one_by_one_is_naive(
    model: GPT, tokenizer: GPT2Tokenizer, max_rows: int, device: str
) -> None:
    """Prompts of very different lengths, and more of them than rows, so that rows are filled again."""
    model.to(device)
    given = prompts(10)
    settings = [SamplingSettings(max_new_tokens=4 + 2 * i) for i in range(10)]
    found = Engine(model, tokenizer, max_rows).generate(given, settings)
    for prompt, setting, request in zip(given, settings, found, strict=True):
        assert request.ids == naive(model, prompt, setting.max_new_tokens, tokenizer.eot_id)
        assert request.text == tokenizer.decode(request.ids)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_sampled_batched_is_one_by_one(model: GPT, tokenizer: GPT2Tokenizer, device: str) -> None:
    model.to(device)
    given = prompts(7)
    settings = [
        SamplingSettings(max_new_tokens=8, temperature=1.3, top_p=0.9, repetition_penalty=1.1, seed=s) for s in range(7)
    ]
    together = Engine(model, tokenizer, 4).generate(given, settings)
    for prompt, setting, request in zip(given, settings, together, strict=True):
        assert Engine(model, tokenizer, 1).generate([prompt], setting)[0].ids == request.ids
    assert len({tuple(r.ids) for r in together}) == 7


def test_the_context_bounds_an_answer(model: GPT, tokenizer: GPT2Tokenizer) -> None:
    (request,) = Engine(model, tokenizer).generate([list(range(60))], SamplingSettings(max_new_tokens=50))
    assert (len(request.ids), request.finish_reason) == (4, "length")
    for bad in ([], list(range(64))):
        with pytest.raises(DataError, match=rf"a prompt has {len(bad)} tokens; allowed are 1 to 63"):
            Engine(model, tokenizer).prepare(bad)


def test_end_of_text_and_stop_texts_end_an_answer(model: GPT, tokenizer: GPT2Tokenizer) -> None:
    prompt = prompts(1)[0]
    engine = Engine(model, tokenizer)
    (whole,) = engine.generate([prompt], SamplingSettings(max_new_tokens=8))
    assert whole.finish_reason == "length"
    # A stop text that begins in one token and ends in the next.
    cut = len(tokenizer.decode(whole.ids[:3]))
    stop = whole.text[cut - 1 : cut + 1]
    (stopped,) = engine.generate([prompt], SamplingSettings(max_new_tokens=8, stop=(stop,)))
    assert stopped.text == whole.text[: whole.text.index(stop)] and stopped.finish_reason == "stop"

    class Ends(GPT2Tokenizer):
        def __init__(self) -> None:
            super().__init__()
            self.eot_id = whole.ids[2]

    (ended,) = Engine(model, Ends()).generate([prompt], SamplingSettings(max_new_tokens=8))
    assert ended.ids == whole.ids[: whole.ids.index(whole.ids[2])] and ended.finish_reason == "stop"


def test_streaming_gives_the_same_text_in_whole_characters(model: GPT, tokenizer: GPT2Tokenizer) -> None:
    settings = SamplingSettings(max_new_tokens=25, temperature=1.5, seed=3)
    prompt = prompts(1)[0]
    pieces = pieces_of(Engine(model, tokenizer), prompt, settings)
    (whole,) = Engine(model, tokenizer).generate([prompt], settings)
    assert "".join(pieces) == whole.text and len(pieces) > 5


def test_an_answer_that_is_left_in_the_middle_is_cancelled(model: GPT, tokenizer: GPT2Tokenizer) -> None:
    engine = Engine(model, tokenizer)
    request = engine.enqueue(engine.prepare(prompts(1)[0], SamplingSettings(max_new_tokens=20)))
    engine.step()
    engine.cancel(request)
    assert engine.n_unfinished == 0 and request.finish_reason == "cancelled" and len(request.ids) == 1


def test_a_call_that_fails_leaves_nothing_to_the_next(model: GPT, tokenizer: GPT2Tokenizer) -> None:
    given, settings = prompts(3), SamplingSettings(max_new_tokens=4)
    expected = [r.ids for r in Engine(model, tokenizer).generate(given, settings)]
    engine, finished = Engine(model, tokenizer), list[Request]()
    for bad in ([50257], [-1]):
        with pytest.raises(DataError, match="a prompt has ids of no token; token ids are between 0 and 50256"):
            engine.generate([given[0], bad], settings)
    with pytest.raises(DataError, match="a prompt has 64 tokens; allowed are 1 to 63"):
        engine.generate([given[0], [1] * 64], settings)
    assert engine.n_unfinished == 0

    def interrupt(_: Request) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(given, [replace(settings, max_new_tokens=n) for n in (1, 4, 4)], interrupt)
    found = engine.generate(given, settings, finished.append)
    assert [r.ids for r in found] == expected and {id(r) for r in finished} == {id(r) for r in found}


def test_cancelling_leaves_the_others_alone(model: GPT, tokenizer: GPT2Tokenizer) -> None:
    given = prompts(5)
    settings = SamplingSettings(max_new_tokens=10)
    expected = [r.ids for r in Engine(model, tokenizer).generate(given, settings)]
    engine = Engine(model, tokenizer, max_rows=3)
    requests = [engine.enqueue(engine.prepare(prompt, settings)) for prompt in given]
    for _ in range(3):
        engine.step()
    engine.cancel(requests[1])  # being written
    engine.cancel(requests[4])  # waiting
    while engine.n_unfinished:
        engine.step()
    assert [r.finish_reason for r in requests] == ["length", "cancelled", "length", "length", "cancelled"]
    for i in (0, 2, 3):
        assert requests[i].ids == expected[i]
    assert 0 < len(requests[1].ids) < 10 and requests[4].ids == []


def test_the_model_is_left_as_it_was(model: GPT, tokenizer: GPT2Tokenizer) -> None:
    model.train()
    finished = []
    Engine(model, tokenizer).generate(prompts(2), SamplingSettings(max_new_tokens=2), finished.append)
    assert model.training and len(finished) == 2


@torch.no_grad()
def test_a_hook_constrains_one_row_and_sees_the_models_own_logits(model: GPT, tokenizer: GPT2Tokenizer) -> None:
    """The likeliest allowed token is taken; the other row is written as if it were alone."""
    first, second = prompts(2)
    free = Engine(model, tokenizer).generate([first, second], SamplingSettings(max_new_tokens=3))
    engine = Engine(model, tokenizer)
    steps: list[list[int]] = [[10, 11, 12], [20, 21], [tokenizer.eot_id]]
    seen: list[tuple[int, int]] = []

    class Steps(Hook):
        def limit(self, ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
            limited = torch.full_like(logits, float("-inf"))
            limited[steps[len(ids)]] = logits[steps[len(ids)]]
            return limited

        def on_token(self, token: int, logits: torch.Tensor) -> None:
            seen.append((token, int(logits.argmax())))

    bound = engine.prepare(first, SamplingSettings(max_new_tokens=9), Steps())
    other = engine.prepare(second, SamplingSettings(max_new_tokens=3), Hook())
    for request in (bound, other):
        engine.enqueue(request)
    while engine.n_unfinished:
        engine.step()
    ids = list(first)
    for allowed in steps[:2]:
        logits = model(torch.tensor([ids]))[0, -1]
        ids.append(max(allowed, key=lambda i: float(logits[i])))
    assert bound.ids == ids[len(first) :] and bound.finish_reason == "stop" and other.ids == free[1].ids
    assert [token for token, _ in seen] == [*bound.ids, tokenizer.eot_id] and seen[0][1] == free[0].ids[0]
