"""Weights in and out: directories, their faults, the shape they bring, and random weights. The hub: test_pretrained_hub."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.core.model.pretrained import (
    PICKLED,
    SHARDS,
    WEIGHTS,
    checkpoint_directory,
    hf_state_dict,
    load_gpt,
    load_weights,
    read_config,
)
from instruct_lit.errors import CheckpointError

CONF = Path(__file__).resolve().parents[3] / "conf" / "model"


def same_weights(a: GPT, b: GPT) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / WEIGHTS)


@pytest.mark.parametrize(
    ("name", "n_parameters"),
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_the_configured_models_have_openais_sizes_and_are_pinned(name: str, n_parameters: int) -> None:
    conf = OmegaConf.load(CONF / f"{name}.yaml")
    shape = {key: conf[key] for key in ("n_layers", "n_heads", "d_model", "context_length")}
    with torch.device("meta"):
        assert GPT(GPTConfig(**shape)).n_parameters == n_parameters
    assert conf.repo == f"openai-community/{name}"
    assert len(conf.revision) == 40 and int(conf.revision, 16) > 0


def test_saved_weights_come_back(tiny: GPT, directory: Path) -> None:
    loaded = load_gpt(directory)
    assert loaded.config == tiny.config
    assert same_weights(loaded, tiny)
    assert loaded.head_weight is loaded.wte.weight
    assert loaded.n_parameters == tiny.n_parameters


def test_names_without_prefix_old_buffers_and_a_stored_head_are_accepted(tiny: GPT, directory: Path) -> None:
    def as_old(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
        tensors["h.1.attn.masked_bias"] = torch.tensor(-1e4)
        tensors["lm_head.weight"] = tensors["wte.weight"].clone()

    rewrite(directory, as_old)
    assert same_weights(load_gpt(directory), tiny)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(tiny: GPT, directory: Path, dtype: torch.dtype) -> None:
    save_file(hf_state_dict(tiny, dtype), directory / WEIGHTS)
    loaded = load_gpt(directory)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    for mine, original in zip(loaded.parameters(), tiny.parameters(), strict=True):
        assert torch.equal(mine, original.to(dtype).float())


def test_linear_weights_are_stored_transposed(tiny: GPT) -> None:
    tensors = hf_state_dict(tiny)
    assert tensors["transformer.h.0.attn.c_attn.weight"].shape == (48, 144)
    assert torch.equal(tensors["transformer.h.1.mlp.c_fc.weight"], tiny.state_dict()["blocks.1.mlp.fc.weight"].t())
    assert "lm_head.weight" not in tensors


def test_every_fault_is_listed_at_once(directory: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        del tensors["transformer.ln_f.bias"]
        tensors["transformer.h.0.attn.c_attn.weight"] = torch.zeros(144, 48)
        tensors["transformer.wpe.weight"] = torch.zeros(32, 48, 1)
        tensors["transformer.h.1.ln_1.bias"] = torch.zeros(48, dtype=torch.int8)
        tensors["transformer.h.2.ln_1.bias"] = torch.zeros(48)
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1

    rewrite(directory, spoil)
    with pytest.raises(CheckpointError) as error:
        load_gpt(directory)
    assert str(error.value).splitlines() == [
        f"{directory / WEIGHTS}: the weights do not fit:",
        "  lm_head.weight differs from wte.weight, but GPT-2's head is tied",
        "  wpe.weight has shape (32, 48, 1), expected (32, 48)",
        "  h.0.attn.c_attn.weight has shape (144, 48), expected (48, 144)",
        "  h.1.ln_1.bias has dtype torch.int8, expected a floating-point one",
        "  ln_f.bias is missing",
        "  h.2.ln_1.bias is not a tensor of this model",
    ]


def test_a_pickled_checkpoint_is_read_as_tensors_only(tiny: GPT, directory: Path, tmp_path: Path) -> None:
    (directory / WEIGHTS).unlink()
    torch.save(hf_state_dict(tiny), directory / PICKLED)
    assert same_weights(load_gpt(directory), tiny)

    class Payload:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"wte.weight": Payload()}, directory / PICKLED)
    with pytest.raises(
        CheckpointError, match="not a weights file .objects beside .*, which are never unpickled, or none; save"
    ):
        load_gpt(directory)
    assert not (tmp_path / "executed").exists()

    for content in ({"epoch": 3}, {0: torch.ones(2)}, [torch.ones(2)]):
        torch.save(content, directory / PICKLED)
        with pytest.raises(CheckpointError, match="it is not a dictionary of tensors"):
            load_gpt(directory)


@pytest.mark.parametrize("name", [WEIGHTS, PICKLED])
@pytest.mark.parametrize("content", [b"", b"<html>Not found</html>", None, b"\xff" * 4096])
def test_damaged_weights_are_said_to_be_damaged(directory: Path, name: str, content: bytes | None) -> None:
    whole = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).unlink()
    (directory / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(
        CheckpointError, match=f"{name}: damaged or not a weights file .*delete a downloaded file, and the next run"
    ):
        load_gpt(directory)


def test_a_directory_without_weights(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    with pytest.raises(
        CheckpointError, match="it has none of model.safetensors, model.safetensors.index.json, pytorch_model.bin"
    ):
        load_gpt(directory)


def test_shards_of_pickles_are_refused_by_name(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="shards of pytorch_model.bin are not read; save it with safetensors"):
        load_gpt(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; only 'gpt2' can be loaded"),
        ({"activation_function": "relu"}, "activation_function='relu' (supported: 'gelu_new')"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False (supported: True)"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True (supported: False)"),
        ({"n_inner": 100}, "n_inner=100 (supported: null or 4 · n_embd)"),
        ({"n_head": 5}, "n_embd=48 is not a multiple of n_head=5"),
        ({"n_layer": "two"}, "n_layer='two' (supported: a positive int)"),
        ({"n_head": 0}, "n_head=0 (supported: a positive int)"),
        ({"n_layer": True}, "n_layer=True (supported: a positive int)"),
        ({"n_layer": 10**12}, "n_layer=1000000000000 (supported: at most 1024)"),
        ({"layer_norm_epsilon": "small"}, "layer_norm_epsilon='small' (supported: a positive float)"),
        ({"n_embd": None, "vocab_size": None, "n_inner": 3}, "vocab_size is missing; n_embd is missing"),
    ],
)
def test_an_unsupported_config_names_key_and_value(directory: Path, changes: dict[str, Any], message: str) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(CheckpointError) as error:
        read_config(directory)
    assert str(error.value) == f"{file}: {message}"


@pytest.mark.parametrize("name", ["vocab_size", "n_positions", "n_embd"])
def test_sizes_without_bound_do_not_fit_in_memory(directory: Path, name: str) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: 48 * 10**12}))
    with pytest.raises(CheckpointError, match="tiny-gpt2: a model of its sizes does not fit in memory"):
        load_gpt(directory)


def test_an_old_config_with_few_keys_is_enough(directory: Path) -> None:
    few = {"model_type": "gpt2", "vocab_size": 97, "n_ctx": 32, "n_embd": 48, "n_layer": 2, "n_head": 4}
    (directory / "config.json").write_text(json.dumps(few))
    assert read_config(directory) == GPTConfig(n_vocab=97, context_length=32, d_model=48, n_layers=2, n_heads=4)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_config_that_is_no_json(directory: Path, content: bytes) -> None:
    (directory / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="config.json: cannot be read as JSON"):
        read_config(directory)


def test_a_config_that_is_no_table(directory: Path) -> None:
    (directory / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="model_type is that of a list; only 'gpt2'"):
        read_config(directory)


def test_a_run_folder_leads_to_its_bundle(directory: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    directory.rename(run / "bundle")
    assert checkpoint_directory(run) == run / "bundle"


def test_a_path_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"model\.path=.*: no config\.json there; give a bundle or a Hugging Face"
    ):
        checkpoint_directory(tmp_path)


def test_random_weights_follow_the_seed_and_fetch_nothing(tiny: GPT) -> None:
    state = torch.get_rng_state()
    again = load_gpt(pretrained=False, config=tiny.config, seed=5, dropout=0.1)
    assert torch.equal(torch.get_rng_state(), state), "building a model leaves the process's random state alone"
    assert same_weights(again, tiny)
    assert again.dropout.p == 0.1
    assert not same_weights(load_gpt(pretrained=False, config=tiny.config, seed=6), tiny)


def test_random_weights_in_the_shape_of_a_directory(tiny: GPT, directory: Path) -> None:
    model = load_gpt(directory, pretrained=False, seed=7)
    assert model.config == tiny.config
    assert not torch.equal(model.wte.weight, tiny.wte.weight)


def test_weights_of_another_shape_do_not_fit(directory: Path) -> None:
    other = load_gpt(
        pretrained=False, config=GPTConfig(n_vocab=97, context_length=32, d_model=24, n_layers=2, n_heads=4)
    )
    with pytest.raises(CheckpointError, match=r"wte.weight has shape \(97, 48\), expected \(97, 24\)"):
        load_weights(other, directory)


@pytest.fixture
def in_shards(tiny: GPT, directory: Path) -> Path:
    """The directory with its weights in several files and an index."""
    (directory / WEIGHTS).unlink()
    save_torch_state_dict(hf_state_dict(tiny), directory, max_shard_size="20KB")
    assert len(list(directory.glob("model-*.safetensors"))) > 1
    return directory


def test_weights_in_shards(tiny: GPT, in_shards: Path) -> None:
    assert same_weights(load_gpt(in_shards), tiny)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder, index: sorted(folder.glob("model-*"))[1].unlink(), "it names model-00002-of-0000.*, which is not beside it"),
        (lambda folder, index: sorted(folder.glob("model-*"))[0].write_bytes(b"{"), "index.json: damaged or not a weights file"),
        (lambda folder, index: index.write_text("{}"), "index.json: damaged or not a weights file"),
        (lambda folder, index: index.write_text("[" * 100_000), "index.json: damaged or not a weights file"),
        (lambda folder, index: index.write_text('{"weight_map": {"a": "../model.safetensors"}}'), "it names ../model.safetensors, which is not beside it"),
        (lambda folder, index: index.write_text('{"weight_map": {"a": 3}}'), "index.json: damaged or not a weights file"),
    ],
)  # fmt: skip
def test_faults_of_shards_are_named(in_shards: Path, change: Callable[[Path, Path], Any], message: str) -> None:
    change(in_shards, in_shards / SHARDS)
    with pytest.raises(CheckpointError, match=message):
        load_gpt(in_shards)


def test_the_precision_of_a_base_is_the_stated_one_or_that_of_its_file(directory: Path) -> None:
    assert load_gpt(directory).base_dtype == torch.float32
    rewrite(directory, lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items()}))
    config = json.loads((directory / "config.json").read_text())
    for stated, expected in (
        ({}, torch.bfloat16),
        ({"torch_dtype": "float16"}, torch.float16),
        ({"dtype": "float32"}, torch.float32),
    ):
        (directory / "config.json").write_text(json.dumps({**config, **stated}))
        assert load_gpt(directory).base_dtype == expected
