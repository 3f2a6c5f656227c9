"""Scores of continuations equal those of separate texts, for any common prefixes and passes."""

import random

import pytest
import torch

from instruct_lit.core.model.gpt import GPT
from instruct_lit.suites.scoring import Pair, Score, log_likelihoods


def alone(model: GPT, pair: Pair) -> Score:
    context, continuation = pair
    ids = [*context, *continuation][-model.config.context_length - 1 :]
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]]))[0, -len(continuation) :]
    targets = torch.tensor(list(continuation))
    value = logits.log_softmax(-1).gather(1, targets[:, None]).sum()
    return Score(float(value), bool((logits.argmax(-1) == targets).all()))


def questions(seed: int, n: int) -> list[Pair]:
    """Contexts behind few-shot beginnings of several lengths, some equal, some too long, with several choices each."""
    draw = random.Random(seed)
    shots = [draw.randrange(50257) for _ in range(40)]
    pairs: list[Pair] = []
    for _ in range(n):
        context = shots[: draw.choice([0, 10, 40])] + [draw.randrange(3) for _ in range(draw.randrange(1, 50))]
        choices = [[draw.randrange(50257) for _ in range(draw.choice([1, 1, 4]))] for _ in range(3)]
        pairs += [(context, choice) for choice in (*choices, choices[0][:1] + choices[1])]
    return pairs


@pytest.mark.parametrize("max_tokens", [300, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 100_000))])
def test_scores_are_those_of_every_text_alone(tiny_model: GPT, max_tokens: int) -> None:
    pairs = questions(max_tokens, 25)
    scored: dict[int, Score] = {}
    found = log_likelihoods(tiny_model, pairs, max_tokens, on_scored=scored.update)
    assert [scored[i] for i in range(len(pairs))] == found
    for pair, score in zip(pairs, found, strict=True):
        expected = alone(tiny_model, pair)
        assert score.log_likelihood == pytest.approx(expected.log_likelihood, abs=1e-4)
        assert score.is_greedy == expected.is_greedy


def test_greedy_continuations_are_recognised(tiny_model: GPT) -> None:
    ids = [5, 6, 7]
    for _ in range(3):
        ids.append(int(tiny_model(torch.tensor([ids]))[0, -1].argmax()))
    wrong = [*ids[3:5], (ids[5] + 1) % 50257]
    assert [s.is_greedy for s in log_likelihoods(tiny_model, [(ids[:3], ids[3:]), (ids[:3], wrong)])] == [True, False]


def test_nothing_to_score_and_the_mode_of_the_model_is_kept(tiny_model: GPT) -> None:
    tiny_model.train()
    assert log_likelihoods(tiny_model, []) == []
    log_likelihoods(tiny_model, [([1], [2])])
    assert tiny_model.training
