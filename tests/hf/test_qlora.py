"""Training on 4-bit weights: what random ones are, and losses and gradients beside peft's and bitsandbytes' own."""

import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from instruct_lit.accel.hardware import needed_flops
from instruct_lit.core.model.attention import PackedDocuments
from instruct_lit.core.training.loss import summed_cross_entropy
from instruct_lit.hf.adapters import Adapter
from instruct_lit.hf.files import four_bits, load_hf

transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
bitsandbytes = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.slow
HALF = torch.bfloat16


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with biases, and rows of at least 64, which share a scale."""
    folder = tmp_path_factory.mktemp("llama64")
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=128, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=160, tie_word_embeddings=True, attention_bias=True,
        initializer_range=0.1, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).to(HALF).save_pretrained(folder)
    return folder


class _Matrices(TorchDispatchMode):
    """The bytes of floating-point matrices that exist at the same time, at most."""

    alive, most = dict[int, tuple[Callable, int]](), 0

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_floating_point() and out.device.type != "meta" and out.ndim == 2:
            storage = out.untyped_storage()
            self.alive[storage.data_ptr()] = weakref.ref(storage), storage.nbytes()
            self.alive = {place: found for place, found in self.alive.items() if found[0]() is not None}
            self.most = max(self.most, sum(n_bytes for _, n_bytes in self.alive.values()))
        return out


def test_random_weights_are_drawn_and_quantised_one_by_one(directory: Path) -> None:
    with _Matrices() as matrices:
        model = load_hf(str(directory), pretrained=False, n_bits=4, seed=3)
    again, other = (load_hf(str(directory), pretrained=False, n_bits=4, seed=seed) for seed in (3, 4))
    plain = load_hf(str(directory), pretrained=False, seed=3, dtype=HALF)
    layers = {n: m for n, m in model.blocks.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}
    assert len(layers) == 21 and layers.keys() == {
        n for n, m in plain.blocks.named_modules() if isinstance(m, torch.nn.Linear)
    }
    for name, layer in layers.items():
        weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        drawn = plain.blocks.get_submodule(name).weight
        assert weight.shape == drawn.shape and weight.std().item() == pytest.approx(drawn.std().item(), rel=0.05)
        assert torch.equal(layer.weight, again.blocks.get_submodule(name).weight)
        assert not torch.equal(layer.weight, other.blocks.get_submodule(name).weight)
        assert layer.bias is None or not layer.bias.any()
    others = {n: p for n, p in model.hf.named_parameters() if p.dtype != torch.uint8}
    assert {p.dtype for p in others.values()} == {HALF} and model.no_layouts is None
    assert all(torch.equal(p, torch.ones_like(p)) for n, p in others.items() if "norm" in n)
    assert model.n_parameters == plain.n_parameters
    assert needed_flops(model.requires_grad_(False), 7, 3) == needed_flops(plain.requires_grad_(False), 7, 3)
    assert model.hf.lm_head.weight is model.hf.get_input_embeddings().weight
    assert matrices.most < sum(p.nbytes for p in plain.parameters()) / 4


def test_losses_and_gradients_are_those_of_peft_and_bitsandbytes(directory: Path) -> None:
    """The same weights, batch and updates, after an evaluation."""
    model = load_hf(str(directory), n_bits=4)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, **four_bits())
    ids, targets = torch.arange(40) * 7 % 300, torch.arange(40) * 11 % 300
    Adapter(model, rank=4, alpha=8)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=8, target_modules=names))
    ours = {n: p for n, p in model.hf.named_parameters() if "lora_" in n}
    of_peft = {n.removeprefix("base_model.model."): p for n, p in theirs.named_parameters() if "lora_" in n}
    assert ours.keys() == of_peft.keys()
    for name, parameter in ours.items():
        torch.nn.init.normal_(parameter, std=0.1)
        of_peft[name].data.copy_(parameter.data)
    optimizers = [torch.optim.AdamW(p.values(), lr=1e-2) for p in (ours, of_peft)]
    losses = []
    for _ in range(5):
        model.eval()
        with torch.no_grad():
            model.hidden_states(ids[None])
        model.train()
        states = model.hidden_states(ids, torch.arange(20).repeat(2), PackedDocuments((20, 20), 0))
        loss = summed_cross_entropy(states, model.head_weight, targets, torch.full((40,), 1 / 40))
        with torch.autocast("cpu", HALF):
            logits = theirs(input_ids=ids.view(2, 20)).logits
        their_loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets)
        for optimizer, value in zip(optimizers, (loss, their_loss), strict=True):
            optimizer.zero_grad()
            value.backward()
        losses.append((loss.item(), their_loss.item()))
        flat, flat_theirs = (torch.cat([p.grad.flatten() for p in found.values()]) for found in (ours, of_peft))
        similarity = torch.cosine_similarity(flat, flat_theirs, dim=0)
        assert similarity > (0.999 if len(losses) == 1 else 0.9), "later, rounding has changed the updates"
        for optimizer in optimizers:
            optimizer.step()
    assert losses[-1][0] < 0.9 * losses[0][0]
    assert [a for a, _ in losses] == pytest.approx([b for _, b in losses], rel=0.01)
