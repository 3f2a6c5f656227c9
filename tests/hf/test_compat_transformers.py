"""The undocumented parts of transformers that are used: a version without one of them is named here."""

import importlib
from pathlib import Path

import pytest
import torch

from instruct_lit.hf import compat_transformers as compat
from instruct_lit.hf.files import load_hf

transformers = pytest.importorskip("transformers")


def test_transformers_has_what_is_used(llama_directory: Path) -> None:
    for module, name in (("masking_utils", "sdpa_mask"), ("integrations.sdpa_attention", "sdpa_attention_forward")):
        assert hasattr(importlib.import_module(f"transformers.{module}"), name), f"transformers.{module}.{name} is gone"
    config = transformers.AutoModelForCausalLM.from_pretrained(llama_directory).config
    assert hasattr(config, "_attn_implementation"), "config._attn_implementation is gone (attention_name)"


def test_the_name_of_the_attention_is_the_one_that_was_set(llama_directory: Path) -> None:
    hf = load_hf(str(llama_directory)).hf
    hf.set_attn_implementation("eager")
    assert compat.attention_name(hf) == "eager"


def test_a_registered_attention_is_called_and_the_own_one_is_sdpa(llama_directory: Path) -> None:
    hf = transformers.AutoModelForCausalLM.from_pretrained(llama_directory).eval()
    ids, calls = torch.arange(7)[None], []
    expected = hf(ids).logits

    def attention(*tensors, **options):
        calls.append(len(tensors))
        return compat.sdpa_attention(*tensors, **options)

    compat.register_attention("instruct_lit_test", attention)
    hf.set_attn_implementation("instruct_lit_test")
    assert torch.equal(hf(ids).logits, expected) and len(calls) == 2


def test_a_model_that_forgets_its_quantization_is_saved_as_an_ordinary_one(
    llama_directory: Path, tmp_path: Path
) -> None:
    hf = transformers.AutoModelForCausalLM.from_pretrained(llama_directory)
    hf.config.quantization_config, hf.hf_quantizer = {"quant_method": "gguf"}, object()
    compat.forget_quantization(hf)
    hf.save_pretrained(tmp_path)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()
