"""A bundle of a model of transformers: AutoModelForCausalLM opens it, and so do we."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from instruct_lit.core.bundle import OURS, open_model, save_bundle
from instruct_lit.core.data.encode import Encoder
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.hf.adapters import Adapter, Base
from instruct_lit.hf.chat_template import with_chat
from instruct_lit.hf.files import load_hf
from instruct_lit.hf.tokenizer import load_tokenizer

transformers = pytest.importorskip("transformers")
GREEDY = {"max_new_tokens": 9, "temperature": 0.0, "top_k": None, "top_p": None, "repetition_penalty": 1.0}
IDS = torch.arange(20)[None]
OWN = Template("own", "Do: {{ instruction }}\nAnswer: {{ response }}")


@pytest.mark.parametrize("chat", [True, False])
def test_trap_13_everything_comes_back(llama_directory: Path, tmp_path: Path, chat: bool) -> None:
    model = load_hf(str(llama_directory)).eval()
    tokenizer, template = load_tokenizer(str(llama_directory)), OWN
    if chat:
        tokenizer, template = with_chat(tokenizer)
    save_bundle(tmp_path / "bundle", model, tokenizer, template, GREEDY, {"metrics": {"val/loss": 1.5}})
    opened = open_model(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "bundle").eval()
    with torch.no_grad():
        logits = model.hidden_states(IDS) @ model.head_weight.T
        assert torch.equal(opened.model.eval().hidden_states(IDS) @ opened.model.head_weight.T, logits)
        torch.testing.assert_close(theirs(IDS).logits, logits, rtol=0, atol=1e-5)
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight
    assert opened.model.head_weight is opened.model.hf.get_input_embeddings().weight  # type: ignore[attr-defined]
    assert opened.tokenizer.fingerprint == tokenizer.fingerprint and opened.template.text == template.text
    ends = theirs.generation_config.eos_token_id
    assert ends[0] == tokenizer.eot_id and theirs.generation_config.max_new_tokens == 9
    assert opened.about["metrics"] == {"val/loss": 1.5} and opened.about["kind"] == "hf"


TURNS = Template(
    "turns",
    "{% if system %}[{{ system }}]\n{% endif %}U: {{ instruction }}\nB:\n{{ response }}",
    next_turn="\nU: {{ instruction }}\nB:\n{{ response }}",
)


@pytest.mark.parametrize("chat", [True, False])
def test_trap_5_conversations_too(llama_directory: Path, tmp_path: Path, chat: bool) -> None:
    tokenizer, template = load_tokenizer(str(llama_directory)), TURNS
    if chat:
        tokenizer, template = with_chat(tokenizer)
    save_bundle(tmp_path, load_hf(str(llama_directory)), tokenizer, template, GREEDY, {})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    talk = [
        {"role": "system", "content": "be a dog"},
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": "and"},
        {"role": "user", "content": "Write a word."},
    ]
    ids = theirs.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    example = Example("Write a word.", "", system="be a dog", history=(("the cat", "and"),))
    assert ids == Encoder(template, tokenizer, 160).prompt_ids(example)


@pytest.mark.parametrize("chat", [True, False])
def test_trap_5_the_chat_template_renders_our_prompt(llama_directory: Path, tmp_path: Path, chat: bool) -> None:
    tokenizer, template = load_tokenizer(str(llama_directory)), OWN
    if chat:
        tokenizer, template = with_chat(tokenizer)
    save_bundle(tmp_path, load_hf(str(llama_directory)), tokenizer, template, GREEDY, {})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = theirs.apply_chat_template(
        [{"role": "user", "content": "the cat"}], add_generation_prompt=True, return_dict=False
    )
    assert ids == Encoder(template, tokenizer, 99).prompt_ids(Example("the cat", ""))
    # The tokenizer of the run keeps its own template: the bundle's is another.
    assert tokenizer.hf.chat_template == load_tokenizer(str(llama_directory)).hf.chat_template


def test_a_directory_of_others_brings_its_chat_template(llama_directory: Path) -> None:
    opened = open_model(llama_directory)
    assert opened.template.name == "chat" and opened.about == {}
    assert open_model(llama_directory, OWN).template is OWN
    assert not (llama_directory / OURS).exists()
    assert json.loads((llama_directory / "config.json").read_text())["model_type"] == "llama"


@pytest.mark.parametrize("base", ["gpt2", "llama"])
def test_an_adapter_is_kept_or_merged(llama_directory: Path, tmp_path: Path, base: str) -> None:
    pytest.importorskip("peft")
    torch.manual_seed(0)
    if base == "llama":
        folder = llama_directory
        model, tokenizer, template = load_hf(str(folder)).eval(), load_tokenizer(str(folder)), OWN
    else:
        folder = tmp_path / "gpt2"
        model, tokenizer, template = saved_gpt(folder), GPT2Tokenizer(), OWN
    adapter = Adapter(model, rank=2)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(0, 0.2)
    with torch.no_grad():
        logits = model.hidden_states(IDS) @ model.head_weight.T
    save_bundle(
        tmp_path / "kept", model, tokenizer, template, GREEDY, {}, partial(adapter.save, base=Base(str(folder)))
    )
    adapter.merge()
    save_bundle(tmp_path / "merged", model, tokenizer, template, GREEDY, {})
    for name in ("kept", "merged"):
        opened = open_model(tmp_path / name)
        with torch.no_grad():
            again = opened.model.eval().hidden_states(IDS) @ opened.model.head_weight.T
        assert (again - logits).abs().max() < 1e-5 * logits.abs().max(), name
        assert opened.template.text == OWN.text and opened.tokenizer.fingerprint == tokenizer.fingerprint
    assert not (tmp_path / "kept" / "config.json").exists()


def saved_gpt(folder: Path) -> GPT:
    """A random GPT-2 that is also saved as the base of an adapter."""
    model = GPT(GPTConfig(context_length=64, d_model=32, n_layers=2, n_heads=4))
    model.init_weights(seed=0)
    save_bundle(folder, model, GPT2Tokenizer(), OWN, GREEDY, {})
    return model.eval()
