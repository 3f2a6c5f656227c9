"""Adapters on our GPT and on a Llama: only they are trained, merging changes no logit, and peft opens them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from instruct_lit.config.model_builders import n_trained, open_model
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.core.model.pretrained import load_gpt
from instruct_lit.errors import CheckpointError, ConfigError
from instruct_lit.hf.adapters import CONFIG, TENSORS, Adapter, linear_names, open_adapter
from instruct_lit.hf.files import load_hf
from instruct_lit.hf.model import HFModel
from instruct_lit.hf.source import HFSource

peft = pytest.importorskip("peft")
IDS = torch.arange(20)[None]


@pytest.fixture(scope="module")
def gpt_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("gpt2")
    config = transformers.GPT2Config(
        vocab_size=99, n_embd=24, n_layer=2, n_head=3, n_positions=40, initializer_range=0.2
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(params=["gpt", "llama"])
def base(request: pytest.FixtureRequest) -> tuple[Callable[[], CausalLM], Path]:
    if request.param == "gpt":
        folder = request.getfixturevalue("gpt_directory")
        return (lambda: load_gpt(folder).eval()), folder
    folder = request.getfixturevalue("llama_directory")
    return (lambda: load_hf(str(folder)).eval()), folder


def logits(model: CausalLM) -> torch.Tensor:
    with torch.no_grad():
        return model.hidden_states(IDS) @ model.head_weight.T


def disturb(model: CausalLM) -> None:
    """As training would: the second matrix of an update starts at zero."""
    random = torch.Generator().manual_seed(7)
    for name, p in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            p.data.normal_(0, 0.2, generator=random)


@pytest.mark.parametrize("dora", [False, True])
def test_merging_changes_no_logit_and_leaves_an_ordinary_model(base, dora: bool) -> None:
    make, _ = base
    plain = make()
    before = logits(plain)
    names = [name for name, _ in plain.named_parameters()]
    adapter = Adapter(plain, rank=4, dora=dora)
    torch.testing.assert_close(logits(plain), before, rtol=1e-4, atol=1e-5)
    trained = [name for name, p in plain.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    assert n_trained(plain) == sum(p.numel() for n, p in plain.named_parameters() if "lora_" in n)
    disturb(plain)
    changed = logits(plain)
    assert (changed - before).abs().max() > 0.1
    adapter.merge()
    assert (logits(plain) - changed).abs().max() < 5e-5 * changed.abs().max()
    assert [name for name, _ in plain.named_parameters()] == names


def test_on_weights_in_half_precision_updates_are_in_fp32_and_merged_in_fp32(base) -> None:
    """The same updates are drawn; a merged matrix is the sum in fp32, rounded once."""
    models = base[0](), base[0]().to(torch.bfloat16)
    adapters = []
    for model in models:
        torch.manual_seed(3)
        adapters.append(Adapter(model, rank=2))
    pairs = [dict(model.named_parameters()) for model in models]
    updates = [name for name in pairs[0] if "lora_" in name]
    assert all(torch.equal(pairs[0][name], pairs[1][name]) for name in updates)
    for name, p in pairs[0].items():
        if name not in updates:
            p.data = p.data.to(torch.bfloat16).float()
    for model in models:
        disturb(model)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = (logits(model).float() for model in models)
    assert (found - expected).norm() < 0.05 * expected.norm()
    for adapter in adapters:
        adapter.merge()
    for p, q in zip(models[0].blocks.parameters(), models[1].blocks.parameters(), strict=True):
        assert q.dtype == torch.bfloat16 and torch.equal(q, p.to(q.dtype))
    again = base[0]().to(torch.bfloat16)
    Adapter(again, rank=2).merge(torch.float32)
    assert {p.dtype for p in again.blocks.parameters()} == {torch.float32, torch.bfloat16}


@pytest.mark.parametrize("dora", [False, True])
def test_peft_opens_what_is_kept_and_so_do_we(base, tmp_path: Path, dora: bool) -> None:
    transformers = pytest.importorskip("transformers")
    make, folder = base
    model = make()
    adapter = Adapter(model, rank=3, alpha=5, dora=dora)
    disturb(model)
    adapter.save(tmp_path, HFSource(str(folder), "abc"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    with torch.no_grad():
        assert (theirs(IDS).logits - logits(model)).abs().max() < 1e-5 * logits(model).abs().max()
    again = make()
    open_adapter(tmp_path, again)
    assert torch.equal(logits(again), logits(model))
    config = json.loads((tmp_path / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["revision"]) == (3, 5, "abc")
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) < 60_000


def test_the_default_targets_are_the_linear_layers_of_the_blocks(base) -> None:
    model = base[0]()
    expected = (
        ["fc", "proj", "qkv"]
        if isinstance(model, GPT)
        else sorted("q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split())
    )
    assert linear_names(model) == expected
    Adapter(model, rank=2)
    assert not any(
        "lora_" in name and "blocks" not in name and "layers" not in name for name, _ in model.named_parameters()
    )


MOE = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "n_group": 1, "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 6, "first_k_dense_replace": 1, "max_position_embeddings": 64,
}  # fmt: skip


def moe() -> HFModel:
    """A DeepSeek V3: a dense block, and one with experts in one tensor and shared ones in layers of the same names."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return HFModel(transformers.AutoModelForCausalLM.from_config(transformers.DeepseekV3Config(**MOE)))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("targets", [None, ["down_proj"], r".*layers\.0\.mlp\.gate_proj"])
def test_targets_are_the_layers_of_these_names_also_beside_experts(
    tmp_path: Path, dora: bool, targets: list[str] | str | None
) -> None:
    """peft would put updates of `down_proj` on the experts' tensors, and on no layer of that name."""
    model = moe()
    adapter = Adapter(model, rank=2, targets=targets, dora=dora)
    names = {str(["down_proj"]): ["down_proj"], "None": linear_names(moe())}.get(str(targets), ["0.mlp.gate_proj"])
    found = [name for name, m in model.hf.named_modules() if hasattr(m, "get_base_layer")]
    expected = [name for name, _ in moe().hf.named_modules() if name.endswith(tuple(f".{end}" for end in names))]
    assert adapter.layers == found == expected and "model.layers.1.mlp.experts" not in found
    disturb(model)
    changed = logits(model.eval())
    adapter.save(tmp_path, HFSource("base"))
    again = moe().eval()
    open_adapter(tmp_path, again)
    assert torch.equal(logits(again), changed)
    adapter.merge()
    torch.testing.assert_close(logits(model), changed, rtol=1e-4, atol=1e-5)


def test_chosen_by_a_regular_expression_the_layers_are_named_one_by_one(tmp_path: Path) -> None:
    """Of architectures with experts peft would take `q_b_proj` of every block."""
    transformers = pytest.importorskip("transformers")
    model = moe()
    adapter = Adapter(model, rank=2, targets=r".*layers\.1\..*q_b_proj")
    adapter.save(tmp_path, HFSource("base"))
    theirs = transformers.AutoModelForCausalLM.from_config(model.hf.config)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path)
    expected = [f"model.layers.1.self_attn.q_b_proj.lora_{part}.default.weight" for part in "AB"]
    assert [n.removeprefix("base_model.model.") for n, _ in theirs.named_parameters() if "lora_" in n] == expected
    assert adapter.layers == ["model.layers.1.self_attn.q_b_proj"]


def test_of_a_state_space_the_first_layer_alone_is_a_default_target() -> None:
    """peft refuses the others, which fused kernels read without the modules."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 1, "num_heads": 4, "head_dim": 16, "n_groups": 1}
    for kind in (transformers.Mamba2Config, transformers.MambaConfig):
        model = HFModel(transformers.AutoModelForCausalLM.from_config(kind(**sizes, state_size=8)), 40)
        assert linear_names(model) == ["in_proj"]
        refused = r"\['out_proj'\]: peft refuses these targets .*; the linear layers are in_proj$"
        with pytest.raises(ConfigError, match=refused):
            Adapter(model, targets=["out_proj"])
        Adapter(model, rank=2)


@pytest.mark.parametrize("kind", ["llama4_text", "phimoe"])
def test_routers_of_experts_have_no_adapter(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    given = transformers.CONFIG_MAPPING[kind](
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, head_dim=8, intermediate_size_mlp=48,
    )  # fmt: skip
    hf = transformers.AutoModelForCausalLM.from_config(given)
    model = HFModel(hf, 40)
    router = next(n for n, m in hf.named_modules() if "Router" in type(m).__name__)
    assert router.rpartition(".")[2] not in linear_names(model)
    with pytest.raises(ConfigError, match=rf"{router} cannot have an adapter, since its weights are used .* for more"):
        Adapter(HFModel(hf, 40), targets=["q_proj", router.rpartition(".")[2]])


def test_targets_by_ending_or_expression(base) -> None:
    ending = "qkv" if isinstance(base[0](), GPT) else "q_proj"
    for targets in ([ending], rf".*\.1\..*\.{ending}"):
        model = base[0]()
        Adapter(model, rank=2, targets=targets)
        adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if "lora_" in name}
        assert len(adapted) == (2 if isinstance(targets, list) else 1) and all(n.endswith(ending) for n in adapted)
    with pytest.raises(
        ConfigError,
        match=rf"adapter.targets=\['nowhere'\]: peft refuses these targets \(.* not found in .*again.\); the linear layers are .*{ending}",
    ):
        Adapter(base[0](), targets=["nowhere"])
    with pytest.raises(
        ConfigError, match=r"targets=\(: peft refuses these targets \(missing \), unterminated subpattern"
    ):
        Adapter(base[0](), targets="(")


def test_what_is_no_adapter_for_this_model_is_refused(base, tmp_path: Path) -> None:
    make, folder = base
    with pytest.raises(CheckpointError, match=f"{CONFIG}: not a peft configuration"):
        open_adapter(tmp_path, make())
    (tmp_path / CONFIG).write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=rf"{CONFIG}: not a peft configuration \(RecursionError"):
        open_adapter(tmp_path, make())
    adapter = Adapter(make(), rank=2)
    adapter.save(tmp_path, HFSource(str(folder)))
    other = GPT(GPTConfig(n_vocab=99, context_length=40, d_model=36, n_layers=2, n_heads=3))
    with pytest.raises(
        (CheckpointError, ConfigError), match="the adapter is not for this base model|refuses these targets"
    ):
        open_adapter(tmp_path, other)
    (tmp_path / TENSORS).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=f"{TENSORS}: cannot be read"):
        open_adapter(tmp_path, make())
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, "peft_type": "IA3"}))
    with pytest.raises(CheckpointError, match="peft_type is IA3; only LORA can be opened"):
        open_adapter(tmp_path, make())
    (tmp_path / CONFIG).write_text(json.dumps({**config, "rank_pattern": {"a": 1}}))
    with pytest.raises(CheckpointError, match="rank_pattern={'a': 1} is not supported"):
        open_adapter(tmp_path, make())
    for change in ({"r": "8"}, {"lora_alpha": None}, {"target_modules": 3}, {"base_model_name_or_path": 5}):
        (key, value), *_ = change.items()
        (tmp_path / CONFIG).write_text(json.dumps({**config, **change}))
        with pytest.raises(
            CheckpointError, match=rf"{CONFIG}: not a peft configuration \(TypeError: {key}={value!r}\)"
        ):
            open_adapter(tmp_path, make())


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "lm_head"], r"lm_head|.*\.v_proj"])
def test_a_head_gets_no_adapter(llama_directory: Path, targets: list[str] | str) -> None:
    model = load_hf(str(llama_directory))
    with pytest.raises(
        ConfigError,
        match=r"adapter.targets=.*: lm_head cannot have an adapter, .* the linear layers are (?!.*base_layer)",
    ):
        Adapter(model, rank=2, targets=targets)


@pytest.mark.parametrize("name", ["wte", "wpe"])
def test_embeddings_of_our_gpt_get_no_adapter(gpt_directory: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"adapter.targets=\['{name}'\]: {name} cannot have an adapter"):
        Adapter(load_gpt(gpt_directory), rank=2, targets=[name])


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*")  # peft's, when it opens the adapter itself
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("targets", [["embed_tokens"], ["embed_tokens", "v_proj"]])
def test_trap_13_a_merged_embedding_leaves_the_head_as_it_was_tested(
    llama_directory: Path, tmp_path: Path, targets: list[str], dora: bool
) -> None:
    model = load_hf(str(llama_directory)).eval()
    assert model.head_weight is model.hf.get_input_embeddings().weight
    adapter = Adapter(model, rank=2, targets=targets, dora=dora)
    random = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=random) * 0.2
    tested = logits(model)
    adapter.save(tmp_path / "apart", HFSource(str(llama_directory)))
    adapter.merge()
    scale = tested.abs().max()
    assert (logits(model) - tested).abs().max() < 5e-5 * scale
    model.hf.save_pretrained(tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is False
    assert (logits(load_hf(str(tmp_path / "merged")).eval()) - tested).abs().max() < 5e-5 * scale
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(llama_directory)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "apart").eval()
    with torch.no_grad():
        assert (theirs(IDS).logits - tested).abs().max() < 5e-5 * scale
    again = load_hf(str(llama_directory)).eval()
    open_adapter(tmp_path / "apart", again).merge()
    assert (logits(again) - tested).abs().max() < 5e-5 * scale


def test_updates_scaled_by_the_root_of_the_rank(base, tmp_path: Path) -> None:
    make, folder = base
    model = make()
    adapter = Adapter(model, rank=4, alpha=8, rslora=True)
    disturb(model)
    adapter.save(tmp_path, HFSource(str(folder)))
    again = make()
    open_adapter(tmp_path, again)
    assert torch.equal(logits(again), logits(model))
    plain = make()
    Adapter(plain, rank=4, alpha=16)  # 16 / 4 = 8 / √4
    disturb(plain)
    torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("modules_to_save", ["lm_head"]), ("lora_bias", True), ("layers_to_transform", [1]), ("bias", "all"),
        ("layer_replication", [[0, 1]]), ("exclude_modules", ["q_proj"]), ("trainable_token_indices", [3]),
        ("target_parameters", ["a"]), ("alpha_pattern", {"a": 1}), ("ensure_weight_tying", True), ("a_key_of_2030", 1),
        ("task_type", "SEQ_CLS"),
    ],
)  # fmt: skip
def test_what_changes_an_adapter_is_followed_or_refused(
    llama_directory: Path, tmp_path: Path, key: str, value: object
) -> None:
    Adapter(load_hf(str(llama_directory)), rank=2).save(tmp_path, HFSource(str(llama_directory)))
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, key: value}))
    with pytest.raises(CheckpointError, match=rf"{CONFIG}: {key}=.* is not supported; save the adapter merged"):
        open_adapter(tmp_path, load_hf(str(llama_directory)))
    (tmp_path / CONFIG).write_text(json.dumps({**config, "init_lora_weights": "pissa"}))
    with pytest.raises(CheckpointError, match="init_lora_weights=pissa changes the base model"):
        open_adapter(tmp_path, load_hf(str(llama_directory)))


def test_an_adapter_whose_base_is_not_here_is_named_with_it(llama_directory: Path, tmp_path: Path) -> None:
    Adapter(load_hf(str(llama_directory)), rank=2).save(tmp_path, HFSource("/elsewhere/model"))
    with pytest.raises(
        CheckpointError,
        match=f"{CONFIG}: base_model_name_or_path=/elsewhere/model is neither a folder .* write there w",
    ):
        open_model(tmp_path)


def test_an_adapter_with_a_tensor_too_few_is_refused(base, tmp_path: Path) -> None:
    make, folder = base
    Adapter(make(), rank=2).save(tmp_path, HFSource(str(folder)))
    tensors = load_file(tmp_path / TENSORS)
    gone = sorted(tensors)[0]
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, tmp_path / TENSORS)
    with pytest.raises(CheckpointError, match=r"the adapter is not for this base model \(.* is missing\)"):
        open_adapter(tmp_path, make())
