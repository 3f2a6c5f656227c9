"""Scores and losses of a model of transformers with grouped heads, in packed layouts and in rows alone."""

from pathlib import Path

import pytest
import torch

from instruct_lit.core.data.encode import Encoder
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.evaluation.losses import response_losses
from instruct_lit.hf.files import load_hf
from instruct_lit.hf.model import HFModel
from instruct_lit.hf.tokenizer import load_tokenizer
from instruct_lit.suites.scoring import log_likelihoods

pytest.importorskip("transformers")


@pytest.fixture(params=["layouts", "rows"])
def model(request: pytest.FixtureRequest, llama_directory: Path) -> HFModel:
    model = load_hf(str(llama_directory)).eval()
    if request.param == "rows":
        model.layout_length = 0
    return model


def log_p(model: HFModel, ids: list[int]) -> torch.Tensor:
    """Log-likelihood of each token behind the first, by the model's own logits."""
    with torch.no_grad():
        logits = model.hf(torch.tensor([ids[:-1]])).logits[0]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def test_scores_are_the_models_own(model: HFModel) -> None:
    pairs = [([0, 9, 8], [7, 6]), ([0, 9, 8], [5]), ([0, 9, 8, 7], [6, 40, 41]), ([3], [200])]
    for (context, continuation), score in zip(pairs, log_likelihoods(model, pairs), strict=True):
        expected = log_p(model, [*context, *continuation])[-len(continuation) :].sum()
        assert score.log_likelihood == pytest.approx(float(expected), rel=1e-4)


def test_losses_are_the_models_own(model: HFModel, llama_directory: Path) -> None:
    tokenizer = load_tokenizer(str(llama_directory))
    encoder = Encoder(Template("t", "Q: {{ instruction }} A: {{ response }}"), tokenizer, 99)
    examples = [e for _, e in encoder.encode([Example("the cat", "the dog"), Example("a", "b"), Example("Write", "")])]
    for example, (loss, n) in zip(examples, response_losses(model, tokenizer, examples), strict=True):
        assert n == example.is_response.sum()
        assert loss == pytest.approx(-float(log_p(model, example.ids.tolist())[-n:].mean()), rel=1e-4)
