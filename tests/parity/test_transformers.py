"""A random GPT-2 saved by transformers: same logits, same masked loss, same greedy text."""

from pathlib import Path

import pytest
import torch

from instruct_lit.core.data.batching import Collator
from instruct_lit.core.data.encode import Encoder
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.gpt import GPT
from instruct_lit.core.model.pretrained import load_gpt
from instruct_lit.core.training.loss import layout_of, summed_cross_entropy

transformers = pytest.importorskip("transformers")
TEMPLATE = Template("short", "Q: {{ instruction }}\nA: {{ response }}")
EXAMPLES = [
    Example("What is red?", "A colour."),
    Example("Why?", "Because the sky is blue, and so on."),
    Example("Count.", "1"),
]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory):
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=48, n_layer=3, n_head=4, n_positions=64, initializer_range=0.2)
    model = transformers.GPT2LMHeadModel(config).eval()
    folder = tmp_path_factory.mktemp("hf")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def ours(theirs: tuple[object, Path]) -> GPT:
    return load_gpt(theirs[1]).eval()


def test_same_logits(theirs, ours: GPT) -> None:
    ids = torch.randint(0, 50257, (3, 40), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs[0](ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("layout", "shared_prefix"), [("padded", False), ("packed", False), ("packed", True)])
def test_same_masked_loss(theirs, ours: GPT, tokenizer: GPT2Tokenizer, layout: str, shared_prefix: bool) -> None:
    encoded = [e for _, e in Encoder(TEMPLATE, tokenizer, 64).encode(EXAMPLES)]
    batch = Collator(tokenizer.eot_id, tokenizer.n_bytes_of, layout, shared_prefix)(encoded)  # type: ignore[arg-type]
    states = ours.hidden_states(batch.input_ids, batch.position_ids, layout_of(batch), batch.loss_index)
    loss = summed_cross_entropy(states, ours.head_weight, batch.targets, batch.loss_weights) / batch.n_supervised
    width = max(len(e.ids) for e in encoded)
    ids = torch.full((3, width), tokenizer.eot_id)
    labels = torch.full((3, width), -100)
    for row, example in enumerate(encoded):
        ids[row, : len(example.ids)] = torch.from_numpy(example.ids)
        labels[row, example.n_prompt : len(example.ids)] = torch.from_numpy(example.ids[example.n_prompt :])
    expected = theirs[0](input_ids=ids, labels=labels).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_same_greedy_text(theirs, ours: GPT, tokenizer: GPT2Tokenizer) -> None:
    encoder = Encoder(TEMPLATE, tokenizer, 64)
    prompts = [encoder.prompt_ids(example) for example in EXAMPLES]
    found = Engine(ours, tokenizer).generate(prompts, SamplingSettings(max_new_tokens=12))
    for prompt, request in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        out = theirs[0].generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.eot_id
        )
        expected = [i for i in out[0, len(prompt) :].tolist() if i != tokenizer.eot_id]
        assert request.ids == expected
