"""Causal models of transformers by architecture, each against transformers' own code: training steps and answers."""

import copy
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from instruct_lit import accel
from instruct_lit.accel.adamw import adamw
from instruct_lit.accel.step import AcceleratedStep
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model import attention
from instruct_lit.core.training.loss import FitFacts
from instruct_lit.hf.files import import_transformers
from instruct_lit.hf.model import HFModel

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow
# Whatever of these a configuration has; the others keep their defaults.
SIZES = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4, "ffn_dim": 48,
    "word_embed_proj_dim": 32, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "sliding_window": 8,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "n_group": 1,
    "index_topk": 7, "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 6, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "attention_dropout": 0.0,
    "hidden_dropout": 0.0, "dropout": 0.0, "residual_dropout": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
PACKED = [
    "bitnet", "cohere2", "deepseek_v2", "deepseek_v3", "ernie4_5", "exaone4", "gemma", "gemma3_text", "gemma4_text", "glm4",
    "glm4_moe_lite", "gpt_neox", "gpt2", "granite", "llama", "llama4_text", "minicpm3", "mistral", "mixtral",
    "nanochat", "olmo2", "olmo3", "opt", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss",
    "smollm3", "starcoder2", "youtu",
]  # fmt: skip
IN_ROWS = {
    "bloom": "its code does not support them", "deepseek_v32": "attends to tokens that it selects",
    "diffllama": "not all of its layers attend once", "mamba": "its code does not support them",
    "falcon": "do not get the states", "gemma2": "it soft-caps its attention scores",
    "gpt_oss": "it adds sinks to its attention scores",
    "gptj": "do not get the states", "granitemoehybrid": "do not get the states", "nemotron": "do not get the states",
    "qwen3_5_text": "do not get the states", "qwen3_next": "do not get the states", "stablelm": "do not get the states",
}  # fmt: skip
TAKE_ROWS = ["diffllama", "granitemoehybrid", "qwen3_5_text", "qwen3_next"]  # of those in rows, by our own attention
LENGTHS, PREFIX = [9, 3, 20], 6


@pytest.fixture(params=[*PACKED, *IN_ROWS], scope="module")
def model(request: pytest.FixtureRequest) -> HFModel:
    import_transformers()
    given = transformers.CONFIG_MAPPING[request.param]()
    sizes = {name: size for name, size in SIZES.items() if name in given.to_dict()}
    if "qk_rope_head_dim" in sizes:  # as many heads of keys as of queries
        sizes["num_key_value_heads"] = 4
    if request.param == "gemma4_text":  # layers of two widths; the last two have the keys of others
        sizes |= {
            "global_head_dim": 16,
            "num_kv_shared_layers": 2,
            "num_hidden_layers": 4,
            "hidden_size_per_layer_input": 8,
        }
        sizes |= {"layer_types": ["sliding_attention", "full_attention"] * 2, "vocab_size_per_layer_input": 99}
    if request.param.startswith("qwen3_"):
        sizes |= {"layer_types": ["linear_attention", "full_attention"]}
    torch.manual_seed(0)
    hf = transformers.AutoModelForCausalLM.from_config(type(given)(**sizes))
    for p in hf.parameters():
        p.data.add_(torch.randn_like(p), alpha=0.05)
    made = HFModel(hf, 64)
    reason = IN_ROWS.get(request.param)
    assert (made.no_layouts is None) if reason is None else reason in str(made.no_layouts)
    assert made.takes_rows is (request.param in (*PACKED, *TAKE_ROWS))
    return made


def _batch(model: HFModel) -> Any:
    random = torch.Generator().manual_seed(7)
    n_tokens = PREFIX + sum(LENGTHS)
    positions = torch.cat([torch.arange(PREFIX), *(torch.arange(PREFIX, PREFIX + n) for n in LENGTHS)])
    batch = SimpleNamespace(
        input_ids=torch.randint(3, 99, (n_tokens,), generator=random), position_ids=positions,
        document_lengths=LENGTHS, prefix_length=PREFIX, loss_index=torch.tensor([8, 9, 12, 17, 18, 30, 36]),
        targets=torch.randint(3, 99, (7,), generator=random),
    )  # fmt: skip
    if model.no_layouts:
        batch.input_ids, batch.position_ids, batch.document_lengths = batch.input_ids[:36].view(3, 12), None, None
        batch.loss_index = batch.loss_index.clamp(max=35)
    return batch


def test_a_fast_step_has_the_loss_and_the_gradients_of_transformers_own_logits(
    model: HFModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents behind a shared prefix, against a whole row for each by transformers alone."""
    monkeypatch.setattr(attention, "KERNELS", [])
    batch, ours, theirs = _batch(model), copy.deepcopy(model).train(), copy.deepcopy(model).hf.train()
    texts = batch.input_ids if batch.document_lengths is None else None
    if texts is None:
        starts = torch.tensor([0, *LENGTHS]).cumsum(0) + PREFIX
        documents = (batch.input_ids[a:b] for a, b in pairwise(starts.tolist()))
        texts = [torch.cat((batch.input_ids[:PREFIX], document)) for document in documents]
    theirs.set_attn_implementation("eager")
    rows = [theirs(input_ids=text[None], use_cache=False).logits[0] for text in texts]
    first = [] if batch.document_lengths is None else [rows[0][:PREFIX]]
    logits = torch.cat([*first, *(row[PREFIX if first else 0 :] for row in rows)])
    expected = torch.nn.functional.cross_entropy(logits[batch.loss_index], batch.targets)
    expected.backward()

    accel.install()
    step, optimizer = AcceleratedStep(), adamw([{"params": list(ours.parameters())}], lr=1e-5)
    if model.no_layouts and model.takes_rows:  # as on a GPU, where steps are recorded
        _in_layout(monkeypatch, ours)
    step.attach(ours)
    step.start(optimizer, FitFacts("32-true", 1, False))
    loss = step.loss(batch, torch.full((7,), 1 / 7))
    loss.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
    wanted = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in ours.hf.named_parameters() if p.grad is not None}
    error = sum((found[name] - grad).square().sum() for name, grad in wanted.items())
    assert error.sqrt() <= 1e-4 * sum(grad.square().sum() for grad in wanted.values()).sqrt()
    step.stop(optimizer)


def _in_layout(monkeypatch: pytest.MonkeyPatch, model: HFModel) -> None:
    states = model._all_states
    monkeypatch.setattr(model, "_all_states", lambda ids, positions, _: states(ids, positions, attention.CausalRows()))


def test_answers_are_those_without_a_cache(model: HFModel) -> None:
    random = torch.Generator().manual_seed(5)
    prompts = [torch.randint(3, 99, (n,), generator=random).tolist() for n in (6, 9, 3)]
    tokenizer: Any = SimpleNamespace(eot_id=-1, decode=lambda ids: " ".join(map(str, ids)))
    found = Engine(model.eval(), tokenizer, max_rows=2).generate(prompts, SamplingSettings(max_new_tokens=8))
    for prompt, response in zip(prompts, found, strict=True):
        text = list(prompt)
        for _ in range(8):
            text.append(int(model.hf(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
        assert response.ids == text[len(prompt) :]
