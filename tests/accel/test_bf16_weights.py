"""Generation in bf16: the numbers of autocast, with copies of the weights that are packed where torch can."""

import copy
from pathlib import Path

import pytest
import torch

from instruct_lit.accel import bf16_weights as module
from instruct_lit.accel.bf16_weights import BF16Weights
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.gpt import GPT

IDS = torch.tensor([[5, 6, 7, 50, 12], [9, 100, 2, 2, 40]])


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


@torch.no_grad()
def check(model: CausalLM) -> None:
    """Hidden states and logits inside are those of autocast, and outside those of before."""
    model.eval()
    exact = model.hidden_states(IDS)
    with torch.autocast("cpu", torch.bfloat16):
        states = model.hidden_states(IDS)
        logits = states @ model.head_weight.t()
    weights = BF16Weights(model)
    with weights.in_use():
        found = model.hidden_states(IDS)
        assert weights.head(found).dtype == torch.bfloat16
        assert relative(weights.head(found), logits) < 0.02
    assert relative(found, exact) < 0.02 and not torch.equal(found, exact)
    assert torch.equal(model.hidden_states(IDS), exact)


@pytest.mark.parametrize("packs", [True, False])
def test_a_gpts_numbers_are_those_of_autocast(tiny_model: GPT, packs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not packs:
        monkeypatch.setattr(module, "can_pack", lambda weight: False)
    elif not module.can_pack(tiny_model.head_weight):
        pytest.skip("this torch cannot pack weights")
    check(tiny_model)


def test_a_hugging_face_models_numbers_are_those_of_autocast(llama_directory: Path) -> None:
    from instruct_lit.hf.files import load_hf

    check(load_hf(str(llama_directory)))


def test_a_forward_of_the_callers_is_put_back(tiny_model: GPT) -> None:
    layer = tiny_model.blocks[0].attn.qkv
    mine = layer.forward
    layer.forward = mine  # as the working weights of training do
    weights = BF16Weights(tiny_model)
    with weights.in_use():
        assert layer.forward is not mine
    with pytest.raises(KeyError, match="stop"), weights.in_use():
        raise KeyError("stop")
    assert layer.__dict__["forward"] is mine and "forward" not in tiny_model.blocks[0].mlp.__dict__


def test_the_engine_answers_in_bf16_and_leaves_the_model_in_fp32(tiny_model: GPT, tokenizer: GPT2Tokenizer) -> None:
    before = copy.deepcopy(tiny_model.state_dict())
    engine = Engine(tiny_model, tokenizer, 2, BF16Weights)
    prompts = [[5, 6, 7], [5, 6, 8, 9], [5, 6, 7, 1, 2]]
    answers = engine.generate(prompts, SamplingSettings(max_new_tokens=6))
    assert engine._cache is not None and engine._cache.keys[0].dtype == torch.bfloat16
    assert [len(answer.ids) for answer in answers] == [6, 6, 6]
    for prompt, answer in zip(prompts, answers, strict=True):
        # Each token is, to rounding, the most likely one of the exact model.
        with torch.no_grad():
            logits = tiny_model(torch.tensor([prompt + answer.ids]))[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
        assert (logits.amax(1) - chosen).max() < 0.05 * logits.std()
    for name, value in tiny_model.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, before[name]), name


def test_copies_are_those_of_the_weights_until_the_engine_is_cleared(tiny_model: GPT, tokenizer: GPT2Tokenizer) -> None:
    engine = Engine(tiny_model, tokenizer, 1, BF16Weights)
    settings = SamplingSettings(max_new_tokens=5)
    first = engine.generate([[5, 6, 7]], settings)[0].ids
    with torch.no_grad():
        tiny_model.blocks[0].mlp.proj.weight.mul_(-50)
    assert engine.generate([[5, 6, 7]], settings)[0].ids == first
    engine.clear()
    assert engine.generate([[5, 6, 7]], settings)[0].ids != first
