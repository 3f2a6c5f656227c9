"""Weights of 8 and 4 bits, which torchao and bitsandbytes write and transformers reads; skipped without the packages."""

import json
import sys
from pathlib import Path

import pytest
import torch

from instruct_lit.core.bundle import OpenedModel, open_model
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.errors import ConfigError
from instruct_lit.exporters.formats import export_model
from instruct_lit.exporters.verification import verify_export
from instruct_lit.hf import install
from instruct_lit.hf.chat_template import with_chat
from instruct_lit.hf.model import HFModel
from instruct_lit.hf.tokenizer import load_tokenizer

pytest.importorskip("transformers")
WRITES = {"int8": "torchao", "nf4": "bitsandbytes"}


def opened(source: Path) -> OpenedModel:
    """A model with rows of 64, the least that bitsandbytes multiplies on a CPU."""
    import transformers

    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    config = transformers.AutoConfig.from_pretrained(source, **sizes)
    torch.manual_seed(0)
    model = HFModel(transformers.AutoModelForCausalLM.from_config(config))
    tokenizer, template = with_chat(load_tokenizer(str(source)))
    return OpenedModel(source / "bundle", model, tokenizer, template, {}, {})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the packages
@pytest.mark.parametrize("kind", WRITES)
def test_a_quantised_directory_is_read_and_compared(kind: str, llama_directory: Path, tmp_path: Path) -> None:
    pytest.importorskip(WRITES[kind])
    model, folder = opened(llama_directory), tmp_path / "out" / "hf"
    export_model(model, "hf", folder, "n", kind)
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == {"int8": "torchao", "nf4": "bitsandbytes"}[kind]
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]  # also for transformers 4
    assert str(tmp_path) not in (folder / "config.json").read_text()
    assert [path.name for path in folder.parent.iterdir()] == ["hf"]
    found = verify_export(model, folder, "hf", kind)
    assert found["readers"] == ["instruct-lit", "transformers"] and 0 < abs(found["change"]["mean"]) < 0.5
    install()
    with pytest.raises(ConfigError, match=r"its weights are quantised; export the run that they are from"):
        export_model(open_model(folder), "hf", tmp_path / "again", "n", "bfloat16")
    with torch.no_grad():
        model.model.hf.get_input_embeddings().weight.mul_(-3)
    assert abs(verify_export(model, folder, "hf", kind)["change"]["mean"]) > 0.5


@pytest.mark.parametrize("kind", WRITES)
def test_what_cannot_be_quantised_is_named_before_anything_is_written(
    kind: str, llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, WRITES[kind], None)
    with pytest.raises(ConfigError, match=rf"dtype={kind}: needs {WRITES[kind]}; pip install -e '.\[quantize\]'"):
        export_model(opened(llama_directory), "hf", tmp_path / "hf", "n", kind)
    own = OpenedModel(
        tmp_path, GPT(GPTConfig(context_length=8, d_model=8, n_layers=1, n_heads=1)), GPT2Tokenizer(), None, {}, {}
    )  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"dtype={kind}: for models of transformers other than GPT-2; use to=gguf"):
        export_model(own, "hf", tmp_path / "hf", "n", kind)
    assert list(tmp_path.iterdir()) == []
