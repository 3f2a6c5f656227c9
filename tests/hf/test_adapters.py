"""Adapters on our GPT and on a Llama: only they are trained, merging changes no logit, and peft opens them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.core.model.pretrained import load_gpt
from instruct_lit.core.model.trainable import trained_share
from instruct_lit.errors import CheckpointError, ConfigError
from instruct_lit.hf.adapters import CONFIG, TENSORS, Adapter, Base, linear_names, open_adapter
from instruct_lit.hf.files import load_hf

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
    assert trained_share(plain)[0] == sum(p.numel() for n, p in plain.named_parameters() if "lora_" in n)
    disturb(plain)
    changed = logits(plain)
    assert (changed - before).abs().max() > 0.1
    adapter.merge()
    assert (logits(plain) - changed).abs().max() < 5e-5 * changed.abs().max()
    assert [name for name, _ in plain.named_parameters()] == names


@pytest.mark.parametrize("dora", [False, True])
def test_peft_opens_what_is_kept_and_so_do_we(base, tmp_path: Path, dora: bool) -> None:
    transformers = pytest.importorskip("transformers")
    make, folder = base
    model = make()
    adapter = Adapter(model, rank=3, alpha=5, dora=dora)
    disturb(model)
    adapter.save(tmp_path, Base(str(folder), "abc"))
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


def test_targets_by_ending_or_expression(base) -> None:
    ending = "qkv" if isinstance(base[0](), GPT) else "q_proj"
    for targets in ([ending], rf".*\.1\..*\.{ending}"):
        model = base[0]()
        Adapter(model, rank=2, targets=targets)
        adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if "lora_" in name}
        assert len(adapted) == (2 if isinstance(targets, list) else 1) and all(n.endswith(ending) for n in adapted)
    with pytest.raises(
        ConfigError,
        match=rf"adapter.targets=\['nowhere'\]: peft refuses these targets .* the linear layers are .*{ending}",
    ):
        Adapter(base[0](), targets=["nowhere"])


def test_what_is_no_adapter_for_this_model_is_refused(base, tmp_path: Path) -> None:
    make, folder = base
    with pytest.raises(CheckpointError, match=f"{CONFIG}: not a peft configuration"):
        open_adapter(tmp_path, make())
    adapter = Adapter(make(), rank=2)
    adapter.save(tmp_path, Base(str(folder)))
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
