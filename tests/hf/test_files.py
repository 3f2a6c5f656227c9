"""Which directories are opened: complete ones of causal models, and the text of models that read more."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from instruct_lit.errors import CheckpointError, ConfigError
from instruct_lit.hf.adapters import Adapter
from instruct_lit.hf.bundles import check_opens
from instruct_lit.hf.files import load_hf
from instruct_lit.hf.model import HFModel
from instruct_lit.hf.trainable import choose_trainable

transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file  # noqa: E402

IDS = torch.arange(5, 17)[None]
SIZES = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip


def changed(directory: Path, folder: Path, removed: str = "", **added: torch.Tensor) -> str:
    """A copy of a directory without one tensor or with further ones."""
    shutil.copytree(directory, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(removed, None)
    save_file({**tensors, **added}, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def test_files_without_some_tensors_of_the_model_are_refused(llama_directory: Path, tmp_path: Path) -> None:
    path = changed(llama_directory, tmp_path / "part", "model.layers.1.mlp.up_proj.weight")
    reason = r"1 of the model's tensors are not in its files \(model.layers.1.mlp.up_proj.weight, for example\); give"
    with pytest.raises(CheckpointError, match=reason):
        load_hf(path)
    load_hf(path, pretrained=False)
    config = json.loads((Path(path) / "config.json").read_text())
    (Path(path) / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(CheckpointError, match=r"2 of the model's tensors are not in its files \(lm_head.weight, for"):
        load_hf(path)


def test_tensors_that_the_model_lacks_are_named(llama_directory: Path, tmp_path: Path) -> None:
    path = changed(llama_directory, tmp_path / "more", **{"model.layers.2.mlp.up_proj.weight": torch.zeros(48, 32)})
    reason = (
        r"1 tensors in its files are no part of the model and are not read \(model.layers.2.mlp.up_proj.weight, for"
    )
    with pytest.warns(UserWarning, match=reason):
        load_hf(path)


def test_quantised_weights_that_transformers_does_not_know_are_refused(llama_directory: Path, tmp_path: Path) -> None:
    reason = "its weights are quantised in a way that transformers does not know "
    scale = {"model.layers.1.mlp.up_proj.weight_scale_inv": torch.ones(1, 1)}
    path = changed(llama_directory, tmp_path / "scaled", **scale)
    with pytest.raises(CheckpointError, match=rf"{reason}\(model.layers.1.mlp.up_proj.weight_scale_inv is not read\)"):
        load_hf(path)
    file = Path(changed(llama_directory, tmp_path / "unknown")) / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "quantization_config": {"quant_method": "modelopt"}}))
    with pytest.raises(CheckpointError, match=rf"{reason}\(quant_method=modelopt\); give the model that they"):
        load_hf(str(file.parent))


def test_weights_that_are_no_numbers_are_named(llama_directory: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    nan = {name: torch.full((48, 32), torch.nan)}
    with pytest.raises(
        ConfigError, match="model: LlamaForCausalLM gives NaN or infinite logits; its weights are damag"
    ):
        load_hf(changed(llama_directory, tmp_path / "nan", **nan))


def test_a_head_beside_another_embedding_is_kept_by_every_reader(llama_directory: Path, tmp_path: Path) -> None:
    assert load_hf(str(llama_directory)).hf.config.tie_word_embeddings
    n_rows = load_file(llama_directory / "model.safetensors")["model.embed_tokens.weight"].shape[0]
    head = {"lm_head.weight": torch.ones(n_rows, 32)}
    hf = load_hf(changed(llama_directory, tmp_path / "both", **head)).hf
    assert hf.get_output_embeddings().weight.mean() == 1 and not hf.config.tie_word_embeddings


def test_an_adapter_alone_is_no_model_to_start_from(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="an adapter without its base model; give a run with adapter.merge=true"):
        load_hf(str(tmp_path))


@pytest.mark.parametrize("kind", ["xlnet", "gemma3_text"])
def test_a_model_that_sees_later_tokens_is_refused(kind: str) -> None:
    config = transformers.CONFIG_MAPPING[kind]
    given = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "vocab_size": 300}
    config = config(**(given if kind == "xlnet" else {**SIZES, "head_dim": 8, "use_bidirectional_attention": True}))
    hf = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in hf.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    with pytest.raises(ConfigError, match="is not causal, since states of its tokens depend on later ones; choose ano"):
        HFModel(hf, 64)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("t5", "t5 is an encoder with a decoder"),
        ("bart", "bart is an encoder with a decoder"),  # transformers would open its decoder alone
        ("clip", "clip is none of them in transformers"),
        ("qwen2_vl", "qwen2_vl is none of them in transformers"),
    ],
)
def test_another_kind_of_model_is_refused_by_name(kind: str, what: str, tmp_path: Path) -> None:
    transformers.CONFIG_MAPPING[kind]().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"only causal language models can be opened, and {what}$"):
        load_hf(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "text", "vision", "own"),
    [
        ("gemma3", "gemma3_text", "siglip_vision_model", {"head_dim": 8}),
        ("gemma4", "gemma4_text", "gemma4_vision", {"head_dim": 8, "global_head_dim": 16}),
        ("llava", "llama", "clip_vision_model", {}),
        ("mistral3", "mistral", "pixtral", {"head_dim": 8}),
        ("idefics3", "llama", "idefics3_vision", {}),  # as SmolVLM's; its tensors are those of a text_model
        ("voxtral", "llama", "voxtral_encoder", {}),  # its configuration says nothing of a tied head
    ],
)
def test_the_text_of_a_model_of_images_is_a_model_of_its_own(
    kind: str, text: str, vision: str, own: dict, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    of_text, of_images = {"model_type": text, **SIZES, **own}, {"model_type": vision, **VISION}
    if kind in ("mistral3", "gemma4"):
        of_images["head_dim"] = 8
    if kind == "gemma4":
        of_text |= {"vocab_size_per_layer_input": 300, "hidden_size_per_layer_input": 8}
        of_images["num_key_value_heads"] = 4
    other = "audio_config" if kind == "voxtral" else "vision_config"
    config = transformers.CONFIG_MAPPING[kind](text_config=of_text, **{other: of_images})
    name = type(config).__name__.replace("Config", "ForConditionalGeneration")
    whole = getattr(transformers, name)(config).eval()
    for parameter in whole.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    whole.save_pretrained(tmp_path / "whole")
    with pytest.warns(UserWarning, match="tensors in its files are no part of the model and are not read"):
        model = load_hf(str(tmp_path / "whole")).eval()
    with torch.no_grad():
        logits = model.logits(model.hidden_states(IDS))
        assert torch.allclose(logits, whole(input_ids=IDS).logits, atol=1e-5)
        assert len(model.blocks) == 2 and model.hf.config.model_type == text
        check_opens(tmp_path / "text", model, torch.float32)
        model.hf.save_pretrained(tmp_path / "text")
        assert "is_text_part" not in (tmp_path / "text" / "config.json").read_text()
        again = load_hf(str(tmp_path / "text")).eval()
        assert torch.equal(again.logits(again.hidden_states(IDS)), logits) and not again.is_text_part
    with pytest.raises(ConfigError, match="adapter.merge=false: the base model reads more than text, and only its "):
        check_opens(tmp_path / "adapter", model, torch.float32, Adapter(model, rank=2))


def test_the_last_blocks_of_a_decoder_without_a_final_norm_are_trained() -> None:
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 16, "ffn_dim": 48, "num_hidden_layers": 2}
    config = transformers.OPTConfig(
        vocab_size=300, num_attention_heads=4, do_layer_norm_before=False, max_position_embeddings=128, **sizes
    )
    model = HFModel(transformers.OPTForCausalLM(config))
    choose_trainable(model, "last_1_block")
    assert [p.requires_grad for p in model.blocks.parameters()].count(True) == len(list(model.blocks[1].parameters()))
