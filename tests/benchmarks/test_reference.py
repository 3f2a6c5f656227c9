"""The plain loop that the benchmarks compare with is a true GPT-2: ours gives the same loss and the same text."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import matrix, reference
from instruct_lit.core.data.batching import IGNORE_INDEX, pad_shift_mask
from instruct_lit.core.data.encode import EncodedExample
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.gpt import GPT

EOT = 50256


@pytest.fixture
def plain(tiny_model: GPT) -> reference.PlainGPT:
    """The plain GPT with the tiny model's weights."""
    shape = tiny_model.config
    model = reference.PlainGPT(shape.n_layers, shape.n_heads, shape.d_model, shape.context_length)
    model.tokens.load_state_dict(tiny_model.wte.state_dict())
    model.positions.load_state_dict(tiny_model.wpe.state_dict())
    model.head.load_state_dict(tiny_model.wte.state_dict())
    model.norm.load_state_dict(tiny_model.ln_f.state_dict())
    for theirs, ours in zip(model.blocks, tiny_model.blocks, strict=True):
        theirs.norm_1.load_state_dict(ours.ln_1.state_dict())
        theirs.norm_2.load_state_dict(ours.ln_2.state_dict())
        parts = zip(ours.attn.qkv.weight.chunk(3), ours.attn.qkv.bias.chunk(3), strict=True)
        names = (theirs.attention.query, theirs.attention.key, theirs.attention.value)
        for linear, (weight, bias) in zip(names, parts, strict=True):
            linear.load_state_dict({"weight": weight, "bias": bias})
        theirs.attention.out.load_state_dict(ours.attn.proj.state_dict())
        theirs.mlp[0].load_state_dict(ours.mlp.fc.state_dict())
        theirs.mlp[2].load_state_dict(ours.mlp.proj.state_dict())
    return model.eval()


def test_same_logits(plain: reference.PlainGPT, tiny_model: GPT) -> None:
    ids = torch.randint(0, EOT, (3, 17), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(plain(ids), tiny_model(ids), rtol=1e-4, atol=1e-5)


def test_same_text(plain: reference.PlainGPT, tiny_model: GPT, tokenizer: GPT2Tokenizer) -> None:
    prompts = [[5, 6, 7], [100, 200, 300, 400]]
    answers = Engine(tiny_model, tokenizer).generate(prompts, SamplingSettings(max_new_tokens=6))
    assert [reference.generate(plain, p, 6) for p in prompts] == [request.ids for request in answers]


def test_collate_learns_all_tokens_and_one_end_of_text() -> None:
    batch = [[1, 2, 3, 4], [5]]
    inputs, targets = reference.collate(batch)
    assert inputs.tolist() == [[1, 2, 3, 4], [5, EOT, EOT, EOT]]
    assert targets.tolist() == [[2, 3, 4, EOT], [EOT, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX]]
    examples = [EncodedExample(i, np.array([*x, EOT]), np.zeros(len(x) + 1, dtype=bool)) for i, x in enumerate(batch)]
    for theirs, ours in zip((inputs, targets), pad_shift_mask(examples, EOT, mask_prompt=False), strict=True):
        assert torch.equal(theirs, ours)


def test_what_the_books_records_need(shared_data: Path) -> None:
    need = matrix.need_of(shared_data / "instructions" / "book-1100.json", "gpt2", 8)
    assert need.n_prefix == 24
    assert 50 < need.n_tokens < 60
    saved = 6 * 12 * 12 * 768**2 * 24 * 7 / 8
    assert need.flops - need.flops_shared == pytest.approx(saved)
