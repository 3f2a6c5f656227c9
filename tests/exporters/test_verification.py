"""A written model is compared with the one that was written; every kind of spoiled bundle is found."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from instruct_lit.core.bundle import save_bundle
from instruct_lit.core.data import template
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer, Tokenizer
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.errors import VerificationError
from instruct_lit.exporters import readers
from instruct_lit.exporters.readers import read_all
from instruct_lit.exporters.verification import (
    Reference,
    Tolerance,
    reference_of,
    round_weights,
    verify,
    verify_bundle,
)
from instruct_lit.hf.adapters import Adapter
from instruct_lit.hf.chat_template import with_chat
from instruct_lit.hf.files import load_hf
from instruct_lit.hf.model import HFModel
from instruct_lit.hf.source import HFSource
from instruct_lit.hf.tokenizer import load_tokenizer
from tests.commands import Command

pytest.importorskip("transformers")
pytest.importorskip("peft")
GREEDY = {"max_new_tokens": 9, "temperature": 0.0, "top_k": None, "top_p": None, "repetition_penalty": 1.0}
OWN = Template("own", "Do: {{ instruction }}\n{{ input }}\nAnswer: {{ response }}")
EXAMPLES = [
    Example(f"the {animal} and the cat", f"a {animal}", "" if n % 2 else "dog")
    for n, animal in enumerate(("cat", "dog", "end", "word", "a", "b", "c", "d"))
]


def gpt2(folder: Path) -> tuple[CausalLM, Tokenizer]:
    model = GPT(GPTConfig(context_length=64, d_model=32, n_layers=2, n_heads=4))
    model.init_weights(seed=0)
    for p in model.parameters():
        p.data.mul_(3)  # answers that differ from one model to the next
    save_bundle(folder, model, GPT2Tokenizer(), OWN, GREEDY, {})
    return model.eval(), GPT2Tokenizer()


def llama(folder: Path, source: Path) -> tuple[CausalLM, Tokenizer]:
    model, tokenizer = load_hf(str(source)).eval(), load_tokenizer(str(source))
    save_bundle(folder, model, tokenizer, OWN, GREEDY, {})
    return model, tokenizer


@pytest.fixture(params=["gpt2", "llama"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, CausalLM, Tokenizer]:
    folder = tmp_path / "bundle"
    if request.param == "gpt2":
        return folder, *gpt2(folder)
    return folder, *llama(folder, request.getfixturevalue("llama_directory"))


def problems(folder: Path, reference: Reference) -> dict[str, list[str]]:
    found = read_all(folder, reference, Tolerance())
    return {name: found_by["problems"] for name, found_by in found.items() if found_by["problems"]}


def test_a_sound_bundle(written: tuple[Path, CausalLM, Tokenizer]) -> None:
    folder, model, tokenizer = written
    reference = reference_of(model, tokenizer, OWN, EXAMPLES)
    assert len(reference.losses) == 8 and len(reference.answers) == len(reference.prompts) == len(reference.chats) == 4
    assert problems(folder, reference) == {}


def test_a_template_that_rewrites_earlier_turns(llama_directory: Path, tmp_path: Path) -> None:
    """As Qwen 3's: every turn is an example in a text of its own, whose record is that of the conversation up to it."""
    model, tokenizer = load_hf(str(llama_directory)).eval(), load_tokenizer(str(llama_directory))
    tokenizer.hf.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{% if loop.last and m.role == 'assistant' %}the {% endif %}"
        "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer, rewriting = with_chat(tokenizer)
    talk = Example("and the cat", "word", history=(("the dog", "a cat"),))
    reference = reference_of(model, tokenizer, rewriting, [talk])
    assert [len(record.get("history", ())) for record in reference.records] == [0, 1]
    save_bundle(tmp_path / "bundle", model, tokenizer, rewriting, GREEDY, {})
    assert problems(tmp_path / "bundle", reference) == {}


@pytest.mark.slow
def test_a_wrong_template(written: tuple[Path, CausalLM, Tokenizer]) -> None:
    folder, model, tokenizer = written
    reference = reference_of(model, tokenizer, OWN, EXAMPLES)
    other = folder.with_name("other")
    save_bundle(
        other, model, tokenizer, Template("own", "Do: {{ instruction }} {{ input }} Answer: {{ response }}"), GREEDY, {}
    )
    found = problems(other, reference)
    assert "12 of 12 prompts have other ids" in found["instruct-lit"][0]
    assert "4 of 4 prompts have other ids" in found["transformers"][0]


@pytest.mark.parametrize("written", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)], indirect=True)
def test_an_untied_head(written: tuple[Path, CausalLM, Tokenizer]) -> None:
    folder, model, tokenizer = written
    reference = reference_of(model, tokenizer, OWN, EXAMPLES)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn(model.head_weight.shape) * 0.1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = problems(folder, reference)
    assert "the loss of example" in found["transformers"][0]
    refused = "tie_word_embeddings=False (supported: True)" in str(found["instruct-lit"])
    assert refused or "the loss of example" in found["instruct-lit"][0]


@pytest.mark.slow
def test_another_adapter(written: tuple[Path, CausalLM, Tokenizer], tmp_path: Path) -> None:
    base, model, tokenizer = written
    adapter = Adapter(model, rank=2)
    names = [(name, p) for name, p in model.named_parameters() if "lora_B" in name]
    for folder, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        for _, p in names:
            p.data.normal_(0, 0.3)
        save = partial(adapter.save, base=HFSource(str(base)))
        save_bundle(tmp_path / folder, model, tokenizer, OWN, GREEDY, {}, save)
    reference = reference_of(model, tokenizer, OWN, EXAMPLES)
    assert problems(tmp_path / "b", reference) == {}
    shutil.copy(tmp_path / "a/adapter_model.safetensors", tmp_path / "b")
    found = problems(tmp_path / "b", reference)
    assert found.keys() == {"instruct-lit", "peft"} and all("the loss of example" in p[0] for p in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("targets", [None, ["embed_tokens", "q_proj"]])
def test_a_merged_adapter_on_tied_weights(targets: list[str] | None, llama_directory: Path, tmp_path: Path) -> None:
    """An update of the embedding unties the head, which other readers have to be told; a lost one is found."""
    folder = tmp_path / "bundle"
    model, tokenizer = llama(folder, llama_directory)
    adapter = Adapter(model, rank=2, targets=targets)
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_B" in name or "lora_embedding" in name:
            p.data.normal_(0, 0.3)
    trained = reference_of(model, tokenizer, OWN, EXAMPLES)
    assert problems(folder, trained).keys() == {"instruct-lit", "transformers"}  # the base model alone
    adapter.merge()
    save_bundle(folder, model, tokenizer, OWN, GREEDY, {})
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] == (targets is None)
    assert problems(folder, trained) == {}
    if targets is not None:  # a head that is tied again is not the trained one
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
        tensors = load_file(folder / "model.safetensors")
        del tensors["lm_head.weight"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        assert problems(folder, trained).keys() == {"instruct-lit", "transformers"}


def test_a_program_that_lacks_a_package_is_no_fault_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama_cpp.py").write_text("import sentences_of_nobody")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    folder = tmp_path / "gguf"
    folder.mkdir()
    (folder / "model-f32.gguf").touch()
    with pytest.raises(VerificationError, match=r"gguf: not verified: .*No module named 'sentences_of_nobody'"):
        verify(folder, Reference([], [], [], [], [], [], [], [], 8), Tolerance())


@pytest.mark.slow
def test_a_missing_shard(written: tuple[Path, CausalLM, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, model, tokenizer = written
    monkeypatch.setattr("instruct_lit.core.bundle.MAX_SHARD_SIZE", "20KB")
    monkeypatch.setattr("instruct_lit.hf.files.MAX_SHARD_SIZE", "20KB")
    save_bundle(folder, model, tokenizer, OWN, GREEDY, {})
    reference = reference_of(model, tokenizer, OWN, EXAMPLES)
    assert problems(folder, reference) == {}
    shard = sorted(folder.glob("model-*-of-*.safetensors"))[0]
    shard.unlink()
    found = problems(folder, reference)
    assert found.keys() == {"instruct-lit", "transformers"}
    assert all("cannot read it" in problem[0] for problem in found.values())
    assert isinstance(model, HFModel) or shard.name in str(found)


@pytest.mark.slow
def test_stored_in_bf16_and_in_a_fresh_process(
    llama_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bundle"
    model, tokenizer = llama(folder, llama_directory)
    make = partial(reference_of, model, tokenizer, OWN, EXAMPLES)
    save_bundle(folder, model, tokenizer, OWN, GREEDY, {}, dtype=torch.bfloat16)
    trained = make()
    verify_bundle(folder, model, trained, make, torch.bfloat16)
    assert "in instruct-lit, transformers" in capsys.readouterr().out
    report = json.loads((tmp_path / "verification.json").read_text())
    assert report["wanted"] != trained.losses and report["readers"]["transformers"]["problems"] == []
    with torch.no_grad():
        model.head_weight.mul_(2)
    with pytest.raises(VerificationError, match=r"merging or rounding has changed the model: the loss of example \d"):
        verify_bundle(folder, model, trained, make, torch.bfloat16)


@pytest.mark.parametrize("written", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)], indirect=True)
def test_a_difference_is_an_error_of_status_1(
    written: tuple[Path, CausalLM, Tokenizer], command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, model, tokenizer = written

    def run(given: list[str], **_: object) -> "subprocess.CompletedProcess[str]":  # that has imported the libraries
        assert given[:3] == [sys.executable, "-m", "instruct_lit.exporters.readers"]
        return command("exporters.readers", *given[3:], cwd=tmp_path)

    monkeypatch.setattr("instruct_lit.exporters.verification.subprocess.run", run)
    with torch.no_grad():
        model.head_weight.mul_(1.1)
    with pytest.raises(
        VerificationError, match=r"bundle: another model than the one that was written; it was kept"
    ) as e:
        verify(folder, reference_of(model, tokenizer, OWN, EXAMPLES), Tolerance())
    assert e.value.status == 1 and "\n  instruct-lit: the loss of example" in str(e.value)
    assert "\n  transformers: the loss of example" in str(e.value)


def test_rounding_keeps_tied_weights_tied(llama_directory: Path) -> None:
    model = load_hf(str(llama_directory))
    before = model.head_weight.clone()
    round_weights(model, torch.bfloat16)
    assert torch.equal(model.head_weight, before.bfloat16().float())
    assert model.head_weight is model.hf.get_input_embeddings().weight


def test_a_fresh_process_reads_calls_and_thoughts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which `datasets` registers with the core; `main` runs in a process in which nothing has."""
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    thought = {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [call]}
    record = Example("Add.", "…", messages=({"role": "user", "content": "Add."}, thought)).as_record()
    monkeypatch.setattr(template, "AS_TEXTS", found := [])
    monkeypatch.setattr("logging.disable", lambda level: None)
    monkeypatch.setattr(readers, "read_all", lambda *_: {"n": len(found)})
    request = {"reference": vars(Reference([record], [], [], [], [], [], [], [], 8)), "tolerance": vars(Tolerance())}
    (tmp_path / "request").write_text(json.dumps({**request, "folder": "", "base": None}))
    monkeypatch.setattr("sys.argv", ["", str(tmp_path / "request"), str(tmp_path / "found")])
    readers.main()
    assert json.loads((tmp_path / "found").read_text()) == {"n": 1}


def test_no_examples_are_replaced_by_questions(llama_directory: Path, tmp_path: Path) -> None:
    model, tokenizer = llama(tmp_path / "bundle", llama_directory)
    reference = reference_of(model, tokenizer, OWN, [])
    assert reference.records[0]["instruction"] == "Name three colours." and len(reference.losses) == 4
