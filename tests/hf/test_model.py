"""Any architecture of transformers: what is exact is used, what is not is refused with its reason."""

import functools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from instruct_lit.core.model.attention import CausalRows, PackedDocuments
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.errors import CheckpointError, ConfigError
from instruct_lit.hf.adapters import Adapter
from instruct_lit.hf.files import import_transformers, load_hf
from instruct_lit.hf.model import HFModel

transformers = pytest.importorskip("transformers")
SIZES = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
OF = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=8),
    "gemma": lambda: transformers.GemmaConfig(**SIZES, num_key_value_heads=1, head_dim=16),
    "gemma3": lambda: transformers.Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=4, query_pre_attn_scalar=5),
    "gemma4": lambda: transformers.Gemma4TextConfig(  # layers of two widths, the last two with the keys of others
        **{**GROUPED, "num_hidden_layers": 4},
        head_dim=8,
        global_head_dim=16,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=99,
    ),
    "pythia": lambda: transformers.GPTNeoXConfig(**SIZES),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "granite": lambda: transformers.GraniteConfig(**GROUPED, logits_scaling=8.0, attention_multiplier=0.1),
    "cohere": lambda: transformers.CohereConfig(**GROUPED, logit_scale=0.25),
    "phi": lambda: transformers.PhiConfig(**SIZES),
    "mixtral": lambda: transformers.MixtralConfig(**GROUPED, num_local_experts=4),
    "nanochat": lambda: transformers.NanoChatConfig(**GROUPED, head_dim=8, final_logit_softcapping=2.0),
    "deepseek": lambda: transformers.DeepseekV3Config(
        **SIZES,
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=6,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=16,
    ),
    "llama4": lambda: transformers.Llama4TextConfig(
        **GROUPED, head_dim=8, num_local_experts=2, intermediate_size_mlp=48
    ),
}


@pytest.fixture(scope="module")
def make() -> Callable[..., HFModel]:
    import_transformers()

    def model(config: object, **options: object) -> HFModel:
        torch.manual_seed(0)
        hf = transformers.AutoModelForCausalLM.from_config(config)
        for p in hf.parameters():  # what starts at 0 or 1 would hide a mistake
            if p.ndim == 1:
                p.data.add_(torch.randn_like(p), alpha=0.1)
        return HFModel(hf, **options).eval()  # type: ignore[arg-type]

    return model


@pytest.mark.parametrize("name", list(OF))
def test_packed_documents_behind_a_prefix_have_the_states_they_have_alone(make: Callable, name: str) -> None:
    model = make(OF[name]())
    assert model.no_layouts is None
    random = torch.Generator().manual_seed(5)
    prefix, *rest = (torch.randint(0, 99, (n,), generator=random) for n in (6, 9, 1, 20))
    positions = torch.cat([torch.arange(6), *(torch.arange(6, 6 + len(r)) for r in rest)])
    layout = PackedDocuments([len(r) for r in rest], 6)
    with torch.no_grad():
        packed = model.hidden_states(torch.cat([prefix, *rest]), positions, layout)
        alone = [model.hidden_states(torch.cat([prefix, r])[None])[0] for r in rest]
        rows = model.hidden_states(torch.cat([prefix, rest[0]])[None], layout=CausalRows())
    torch.testing.assert_close(packed, torch.cat([alone[0][:6], *(a[6:] for a in alone)]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows[0], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "llama", "qwen3", "gemma", "phi", "gpt2", "llama lora", "llama recomputed", "llama lora recomputed",
    ],
)  # fmt: skip
@pytest.mark.slow
def test_compiled_blocks_give_the_same_states_and_gradients_and_are_compiled_once(make: Callable, name: str) -> None:
    """Three layers and three lengths share their graphs, which the attention interrupts; evaluation is not compiled.

    The last block computes selected tokens only, with the graphs of the others for another number of tokens.
    """
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiler = functools.cache(lambda function: torch.compile(function, dynamic=True, backend=backend))
    name, *more = name.split()
    config = OF[name]()
    config.num_hidden_layers = 3
    if name == "qwen3":
        config.layer_types = ["full_attention"] * 3
    if name == "gpt2":
        config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    model = make(config, activation_checkpointing="recomputed" in more).train()
    if "lora" in more:
        Adapter(model, rank=3)
    assert (model._last is None) is (name == "gpt2")
    for lengths in ((7, 5), (12, 3), (9, 22)):
        found, kept = [], []
        ids, positions = torch.arange(sum(lengths)) % 99, torch.cat([torch.arange(n) for n in lengths])
        index = torch.tensor([1, 5, 5, 9, sum(lengths) - 1])
        for model.compiler, selection in ((None, index), (compiler, index), (compiler, None)):
            model.zero_grad()
            sizes: dict[int, int] = {}
            with torch.autograd.graph.saved_tensors_hooks(
                lambda t, s=sizes: (s.update({id(t): t.nbytes}), t)[1], lambda t: t
            ):
                states = model.hidden_states(ids, positions, PackedDocuments(lengths), selection)
            kept.append(sum(sizes.values()))
            states = states if selection is not None else states[index]
            (states * torch.linspace(-1, 1, states.numel()).view(states.shape)).sum().backward()
            found.append([states.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        for others in found[1:]:
            for expected, compiled in zip(found[0], others, strict=True):
                assert (compiled - expected).norm() <= 1e-5 * expected.norm() + 1e-6
        assert model._last is None or kept[1] < kept[2], "what is not selected is kept for the backward pass"
    n_graphs = len(graphs)
    assert 0 < n_graphs <= 6, "every layer or length was compiled by itself"
    model.eval().hidden_states(torch.arange(5)[None])
    assert len(graphs) == n_graphs


@pytest.mark.parametrize("name", list(OF))
def test_states_and_head_give_the_model_its_own_logits(make: Callable, name: str) -> None:
    model = make(OF[name]())
    ids = torch.randint(0, 99, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = model.logits(model.hidden_states(ids))
        torch.testing.assert_close(ours, model.hf(ids).logits, rtol=1e-4, atol=1e-5)


def test_the_shape_is_that_of_the_model(make: Callable) -> None:
    model = make(OF["llama"]())
    shape = model.config
    assert (shape.architecture, shape.n_vocab, shape.context_length) == ("LlamaForCausalLM", 99, 64)
    assert shape.kv_heads == ((2, 8), (2, 8))
    blocks = sum(p.numel() for n, p in model.hf.named_parameters() if ".layers." in n)
    assert sum(p.numel() for p in model.blocks.parameters()) == blocks


def test_a_soft_cap_is_applied_and_attention_with_one_has_padded_rows(make: Callable) -> None:
    config = transformers.Gemma2Config(**GROUPED, head_dim=8, query_pre_attn_scalar=1, final_logit_softcapping=0.5)
    model = make(config)
    assert (model.logit_cap, model.layout_length) == (0.5, 0)
    assert model.no_layouts == "it soft-caps its attention scores"
    ids = torch.randint(0, 99, (2, 12), generator=torch.Generator().manual_seed(1))
    logits = model.logits(model.hidden_states(ids))
    torch.testing.assert_close(logits, model.hf(ids).logits, rtol=1e-4, atol=1e-5)
    assert 0.3 < logits.abs().max() <= 0.5


def test_what_the_logits_need_beside_the_head_is_refused(make: Callable) -> None:
    with pytest.raises(ConfigError, match="model: BertLMHeadModel computes its logits by more than its head"):
        make(transformers.BertConfig(**SIZES, is_decoder=True))
    narrow = transformers.RemBertConfig(**SIZES, is_decoder=True, input_embedding_size=8, output_embedding_size=16)
    with pytest.raises(
        ConfigError, match="RemBertForCausalLM gives no states and logits for token ids alone .*cannot be"
    ):
        make(narrow)


def test_a_chunk_bounds_the_lengths_for_layouts(make: Callable) -> None:
    config = transformers.Llama4TextConfig(
        **GROUPED, attention_chunk_size=16, num_local_experts=2, intermediate_size_mlp=48, head_dim=8
    )
    model = make(config)
    assert (model.layout_length, model.no_layouts) == (16, "its layers attend within chunks of 16 tokens")
    within = make(config, context_length=16)
    assert (within.layout_length, within.no_layouts) == (math.inf, None)


def test_an_architecture_without_attention_takes_rows_only_and_says_why(make: Callable) -> None:
    model = make(transformers.MambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2), context_length=40)
    assert model.no_layouts is not None and "its code does not support them" in model.no_layouts
    assert model.hidden_states(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 32)
    soft = transformers.Gemma2Config(**GROUPED, head_dim=8, final_logit_softcapping=None)
    assert make(soft).no_layouts == "it soft-caps its attention scores"


def test_the_context_length_must_fit(make: Callable) -> None:
    with pytest.raises(ConfigError, match="model.context_length=65: llama supports at most 64"):
        make(OF["llama"](), context_length=65)
    with pytest.raises(ConfigError, match="model.context_length=null: mamba has no maximum"):
        make(transformers.MambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=1))


@pytest.mark.parametrize("draws", ["", "in attention", "in adapters"])
def test_recomputed_activations_change_no_gradient(make: Callable, monkeypatch: pytest.MonkeyPatch, draws: str) -> None:
    """Random numbers are drawn again; where a block draws none, their state is not touched, in the way of a graph."""
    config, gradients = OF["llama"](), []
    config.attention_dropout = 0.4 * (draws == "in attention")
    for checkpointing in (False, True):
        model = make(config, activation_checkpointing=checkpointing).train()
        Adapter(model, rank=3, dropout=0.4 * (draws == "in adapters"), targets=["up_proj"])
        for step in range(3):
            torch.manual_seed(step)
            index = torch.arange(10 * (step > 0))  # nothing selected at first
            model.zero_grad()
            with monkeypatch.context() as spied:
                if step == 2 and not draws:
                    spied.delattr(torch, "get_rng_state")
                    spied.delattr(torch, "set_rng_state")
                states = model.hidden_states(torch.arange(10), torch.arange(10) % 5, PackedDocuments([5, 5]), index)
                (states * torch.linspace(-1, 1, states.numel()).view(states.shape)).sum().backward()
        gradients.append([p.grad for n, p in model.named_parameters() if "lora_B" in n])
    assert [block.forward.draws for block in model.blocks] == [bool(draws)] * 2
    assert len(gradients[0]) == 2 and gradients[0][0].any()
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_opening_a_directory(llama_directory: Path, tmp_path: Path) -> None:
    model = load_hf(str(llama_directory), dropout=0.25)
    assert model.hf.config.attention_dropout == 0.25 and model.hf.dtype == torch.float32
    random = [load_hf(str(llama_directory), pretrained=False, seed=seed).head_weight for seed in (1, 1, 2)]
    assert torch.equal(random[0], random[1]) and not torch.equal(random[0], random[2])
    with pytest.raises(CheckpointError, match=r"model.path=.*transformers cannot open it"):
        load_hf(str(tmp_path))


def test_a_soft_cap_of_the_logits_has_many_names(make: Callable) -> None:
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 8}
    given = transformers.RecurrentGemmaConfig(**sizes, num_attention_heads=4, lru_width=32, logits_soft_cap=9.0)
    assert make(given, context_length=40).logit_cap == 9.0


def test_dropout_is_set_whatever_the_architecture_calls_it(tmp_path: Path) -> None:
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    given = transformers.BioGptConfig(**sizes, intermediate_size=48, max_position_embeddings=64, layerdrop=0.3)
    transformers.AutoModelForCausalLM.from_config(given).save_pretrained(tmp_path / "biogpt")
    for dropout in (0.0, 0.25):
        text = load_hf(str(tmp_path / "biogpt"), dropout=dropout).hf.config
        assert {text.hidden_dropout_prob, text.attention_probs_dropout_prob, text.activation_dropout} == {dropout}
        assert text.layerdrop == 0
    sizes = {"vocab_size": 99, "d_model": 32, "n_layers": 1, "n_heads": 4, "max_seq_len": 64}
    given = transformers.MptConfig(**sizes, attn_config={"attn_pdrop": 1}, emb_pdrop=0.1)  # an int, as they declare it
    transformers.AutoModelForCausalLM.from_config(given).save_pretrained(tmp_path / "mpt")
    text = load_hf(str(tmp_path / "mpt"), context_length=64).hf.config
    assert (text.attn_config.attn_pdrop, text.emb_pdrop) == (0, 0.0)


def test_code_of_a_repository_runs_only_if_trusted(llama_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "odd", "auto_map": {"AutoConfig": "odd.Odd"}}')
    (tmp_path / "odd.py").write_text("raise SystemExit('executed')")
    with pytest.raises(
        ConfigError, match="needs the Python code in the repository; if you trust it, add model.trust_remote_code=true "
    ):
        load_hf(str(tmp_path))


def test_it_is_opened_for_training_with_dropout_and_activations_computed_again(llama_directory: Path) -> None:
    ids = torch.arange(24)[None]

    def kept(model: HFModel) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
            model.hidden_states(ids)
        return sum(sizes)

    dropping = load_hf(str(llama_directory), dropout=0.5)
    assert not torch.equal(dropping.hidden_states(ids), dropping.hidden_states(ids))
    assert torch.equal(dropping.eval().hidden_states(ids), dropping.hidden_states(ids))
    plain, again = (load_hf(str(llama_directory), activation_checkpointing=on) for on in (False, True))
    assert kept(again) < kept(plain) / 2
    assert torch.equal(again.hidden_states(ids), plain.hidden_states(ids))


def test_layers_without_bound_are_refused_before_they_are_made(llama_directory: Path, tmp_path: Path) -> None:
    folder = tmp_path / "endless"
    shutil.copytree(llama_directory, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**12, "layer_types": None}))
    with pytest.raises(CheckpointError, match="num_hidden_layers=1000000000000; at most 1024"):
        load_hf(str(folder))


def weights_of(states: torch.Tensor) -> torch.Tensor:
    """Random ones: behind a norm the sum of squares has hardly a gradient."""
    return torch.randn(states.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name",
    ["llama", "phi", *(pytest.param(n, marks=pytest.mark.slow) for n in ("qwen3", "gemma", "cohere", "mixtral"))],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_behind_its_attention_the_last_block_computes_selected_tokens_only(
    make: Callable, name: str, checkpointing: bool
) -> None:
    """With the same states and gradients as if all were computed; a token may be selected twice."""
    index, lengths, found = torch.tensor([2, 7, 7, 11]), [5, 7], []
    ids, positions = torch.arange(12) % 99, torch.cat([torch.arange(n) for n in lengths])
    for selects in (False, True):
        model, n_rows = make(OF[name](), activation_checkpointing=checkpointing).train(), []
        assert model._last is not None
        if not selects:
            model._last = None
        for block in model.blocks:
            block.mlp.register_forward_hook(lambda mlp, inputs, out, n=n_rows: n.append(inputs[0].shape[-2]))
        states = model.hidden_states(ids, positions, PackedDocuments(lengths), index)
        assert n_rows == [12, 4 if selects else 12]
        (states * weights_of(states)).sum().backward()
        found.append([states.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for expected, selected in zip(*found, strict=True):
        torch.testing.assert_close(selected, expected, rtol=1e-4, atol=1e-5)
    rows = torch.tensor([[1, 2, 3, 0], [4, 5, 6, 7]])
    padded = [model.hidden_states(rows, layout=CausalRows(), index=torch.tensor(at)) for at in ([2, 7], list(range(8)))]
    torch.testing.assert_close(padded[0], padded[1][[2, 7]], rtol=1e-4, atol=1e-5)


def test_code_that_expects_all_tokens_behind_the_last_block_gets_them(make: Callable) -> None:
    model = make(OF["gpt2"]())
    assert model._last is None and "forward" not in vars(model.blocks[-1])


@pytest.mark.parametrize("name", ["llama", pytest.param("gpt", marks=pytest.mark.slow)])
def test_every_nth_block_is_recomputed(make: Callable, name: str) -> None:
    """The more blocks are recomputed, the less is kept; the gradients stay."""
    kept, gradients = [], []
    for every in (False, 3, 2, True):
        sizes: dict[int, int] = {}
        if name == "gpt":
            model = GPT(GPTConfig(99, 64, 32, 4, 4), activation_checkpointing=every).train()
            model.init_weights(0)
        else:
            config = OF[name]()
            config.num_hidden_layers = 4
            model = make(config, activation_checkpointing=every).train()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, s=sizes: (s.update({id(t): t.nbytes}), t)[1], lambda t: t
        ):
            states = model.hidden_states(torch.arange(30), torch.arange(30) % 15, PackedDocuments([15, 15]))
        (states * weights_of(states)).sum().backward()
        kept.append(sum(sizes.values()))
        gradients.append([p.grad for p in model.blocks.parameters()])
    assert kept == sorted(kept, reverse=True) and kept[3] < kept[2] < kept[0]
    for other in gradients[1:]:
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(gradients[0], other, strict=True))
