"""GGUF read back by the gguf package and by transformers: our tensors, our tokenizer, our logits."""

import json
import sys
from pathlib import Path

import pytest
import torch

from instruct_lit.core.data.tokenizer import EOT, GPT2Tokenizer
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.errors import ConfigError
from instruct_lit.exporters.gguf import gguf_names, write_gguf

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def model() -> GPT:
    """With the context of GPT-2, since transformers' reader of GGUF takes that for granted."""
    model = GPT(GPTConfig(context_length=1024, d_model=64, n_layers=2, n_heads=4))
    model.init_weights(seed=0)
    return model.eval()


class FewTokens(GPT2Tokenizer):
    """GPT-2's with a vocabulary that is read back at once; all of it takes the reader seconds."""

    def vocab_files(self) -> dict[str, bytes]:
        return {"encoder.json": json.dumps({"a": 0, "b": 1, "ab": 2, EOT: 3}).encode(), "vocab.bpe": b"a b"}


@pytest.mark.parametrize(("precision", "tolerance"), [("f32", 0.0), ("f16", 4e-5), ("bf16", 4e-4), ("q8_0", 5e-4)])
def test_its_tensors_are_ours(model: GPT, tmp_path: Path, precision, tolerance: float) -> None:
    write_gguf(tmp_path / "m.gguf", model, FewTokens(), precision, "a name", "{{ messages }}")
    read = gguf.GGUFReader(tmp_path / "m.gguf")
    tensors = {tensor.name: tensor for tensor in read.tensors}
    names = gguf_names(model)
    assert sorted(tensors) == sorted(names.values())
    for ours, parameter in model.named_parameters():
        tensor = tensors[names[ours]]
        found = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        torch.testing.assert_close(found, parameter.detach(), rtol=0, atol=tolerance)
    types = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert types["blk.0.attn_qkv.weight"] == precision.upper()
    assert types["blk.0.attn_qkv.bias"] == types["position_embd.weight"] == "F32"


@pytest.mark.parametrize("of", [FewTokens, pytest.param(GPT2Tokenizer, marks=pytest.mark.slow)])
def test_its_tokens_and_facts_are_ours(model: GPT, of: type[GPT2Tokenizer], tmp_path: Path) -> None:
    tokenizer = of()
    write_gguf(tmp_path / "m.gguf", model, tokenizer, "f16", "a name", "{{ messages }}")
    read = gguf.GGUFReader(tmp_path / "m.gguf")
    expected = {
        "general.architecture": "gpt2", "general.name": "a name", "gpt2.context_length": 1024, "gpt2.block_count": 2,
        "gpt2.attention.head_count": 4, "gpt2.feed_forward_length": 256, "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": 50256, "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ messages }}",
    }  # fmt: skip
    assert {key: read.fields[key].contents() for key in expected} == expected
    tokens = read.fields["tokenizer.ggml.tokens"].contents()
    assert tokens == list(json.loads(tokenizer.vocab_files()["encoder.json"])) and tokens[-1] == EOT


def test_rows_that_are_no_multiple_of_a_block_stay_half(tmp_path: Path) -> None:
    narrow = GPT(GPTConfig(context_length=8, d_model=24, n_layers=1, n_heads=2))
    narrow.init_weights(seed=0)
    write_gguf(tmp_path / "m.gguf", narrow, FewTokens(), "q8_0", "n", "c")
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert types["blk.0.ffn_up.weight"] == "F16" and types["blk.0.ffn_down.weight"] == "Q8_0"  # 24 and 96 wide


@pytest.mark.slow
def test_transformers_opens_it_with_our_logits_and_ids(model: GPT, tokenizer: GPT2Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write_gguf(tmp_path / "m.gguf", model, tokenizer, "f32", "name", "{{ messages }}")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    ids = torch.randint(0, 50257, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(ids).logits, model(ids), rtol=0, atol=1e-5)
    text = "Hello  world,\n\n### Response:\n🙂"
    assert transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")(text).input_ids == tokenizer.encode(
        text
    )


@pytest.mark.parametrize(("mlp", "tolerance"), [(False, 1e-5), (True, 2e-3)])
def test_llama_cpp_gives_our_logits(tokenizer: GPT2Tokenizer, tmp_path: Path, mlp: bool, tolerance: float) -> None:
    """To rounding, the MLP aside: llama.cpp looks the GELU up in a table of half precision."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = GPT(GPTConfig(context_length=64, d_model=64, n_layers=2, n_heads=4))
    model.init_weights(seed=0)
    if not mlp:
        for name, parameter in model.named_parameters():
            if name.endswith("mlp.proj.weight"):
                parameter.data.zero_()
    write_gguf(tmp_path / "m.gguf", model, tokenizer, "f32", "name", "{{ messages }}")
    exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}  # its cache is f16 unless told
    theirs = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=64, logits_all=True, verbose=False, **exact)
    ids = tokenizer.encode("Below is an instruction.\n\n### Response:\n")
    assert theirs.tokenize(b"Below is an instruction.\n\n### Response:\n") == ids  # no token in front
    theirs.eval(ids)
    with torch.no_grad():
        expected = model.eval()(torch.tensor([ids]))[0]
    torch.testing.assert_close(torch.from_numpy(theirs.scores[: len(ids)]), expected, rtol=0, atol=tolerance)


def test_without_the_package_the_extra_is_named(
    model: GPT, tokenizer: GPT2Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"to=gguf: needs gguf; pip install -e '.\[export\]'"):
        write_gguf(tmp_path / "m.gguf", model, tokenizer, "f16", "n", "c")


def test_its_shape_opens_with_random_weights(tmp_path: Path) -> None:
    """As `peek` opens it, and a run with model.pretrained=false."""
    pytest.importorskip("transformers")
    from instruct_lit.hf.files import load_hf
    from instruct_lit.hf.source import HFSource

    narrow = GPT(GPTConfig(context_length=8, d_model=24, n_layers=1, n_heads=2))
    narrow.init_weights(seed=0)
    write_gguf(tmp_path / "m.gguf", narrow, FewTokens(), "f32", "n", "c")
    opened = load_hf(HFSource(str(tmp_path), gguf_file="m.gguf"), pretrained=False)
    assert opened.config.d_model == 24 and opened.hf.config.num_hidden_layers == 1
