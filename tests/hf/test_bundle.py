"""A bundle of a model of transformers: AutoModelForCausalLM opens it, and so do we."""

import copy
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from instruct_lit.config.model_builders import model_of
from instruct_lit.core.bundle import OURS, open_model, save_bundle
from instruct_lit.core.data.encode import Encoder
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.errors import ConfigError
from instruct_lit.hf.adapters import Adapter
from instruct_lit.hf.bundles import check_opens
from instruct_lit.hf.chat_template import with_chat
from instruct_lit.hf.files import load_hf
from instruct_lit.hf.older_readers import spell_for_transformers_4
from instruct_lit.hf.source import HFSource
from instruct_lit.hf.tokenizer import has_other_tokenizer, load_tokenizer
from tests.configs import composed
from tests.hf.test_adapters import moe

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
    assert ends[0] == tokenizer.eot_id and theirs.generation_config.max_new_tokens is None
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


def test_a_gpt2_with_another_tokenizer_is_read_with_it(
    llama_directory: Path, tokenizer: GPT2Tokenizer, tmp_path: Path
) -> None:
    """Such as a Chinese or Korean GPT-2, whose ids mean other words than GPT-2's."""
    own = transformers.AutoTokenizer.from_pretrained(llama_directory)
    shape = transformers.GPT2Config(vocab_size=len(own), n_positions=64, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(shape).save_pretrained(tmp_path)
    assert not has_other_tokenizer(tmp_path)  # without any it is GPT-2's
    own.save_pretrained(tmp_path)
    opened = open_model(tmp_path, Template("bare", "{{ instruction }}{{ response }}"))
    assert opened.tokenizer.encode("the cat") == own("the cat", add_special_tokens=False)["input_ids"]
    with pytest.raises(
        ConfigError, match=rf"model.path={tmp_path}: its tokenizer is not GPT-2's; give model=hf model.path="
    ):
        model_of(composed("train", "model=gpt2", f"model.path={tmp_path}"))
    vocabulary = json.loads(tokenizer.vocab_files()["encoder.json"])
    for tokens, is_other in (([], False), ([{"content": "<|endoftext|>"}], False), ([{"content": "<pad>"}], True)):
        given = {"model": {"vocab": vocabulary}, "added_tokens": tokens}
        (tmp_path / "tokenizer.json").write_text(json.dumps(given))
        assert has_other_tokenizer(tmp_path) is is_other


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
        tmp_path / "kept", model, tokenizer, template, GREEDY, {}, partial(adapter.save, base=HFSource(str(folder)))
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


def saved_base(folder: Path, base: Path, **generation: object) -> Path:
    """A copy of a base model with generation defaults of its own."""
    shutil.copytree(base, folder)
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 1, **generation}))
    return folder


@pytest.mark.parametrize(
    "defaults",
    [
        {"temperature": 0.6, "top_p": 0.9, "do_sample": True},
        {"temperature": 0.6},  # without do_sample, as published models have it: transformers refuses to save that
        {"top_k": 5, "typical_p": 0.5, "min_p": 0.1, "epsilon_cutoff": 3e-4, "eta_cutoff": 3e-4},
        {"no_repeat_ngram_size": 2, "max_length": 12, "max_new_tokens": 3, "suppress_tokens": [5]},
        {"num_beams": 4, "early_stopping": True, "length_penalty": 2.0},
    ],
)
def test_generation_defaults_of_the_base_are_not_in_the_way(
    llama_directory: Path, tmp_path: Path, defaults: dict[str, object]
) -> None:
    base = saved_base(tmp_path / "base", llama_directory, **defaults)
    for n, sampling in enumerate((GREEDY, {**GREEDY, "temperature": 0.7, "top_p": 0.8})):
        save_bundle(
            tmp_path / f"bundle{n}", load_hf(str(base)), load_tokenizer(str(base)), OWN, sampling, {"metrics": {}}
        )
        stored = json.loads((tmp_path / f"bundle{n}" / "generation_config.json").read_text())
        ours = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 0} if n else {"do_sample": False}
        assert stored.items() >= {"eos_token_id": [1], "pad_token_id": 1, "bos_token_id": 0, **ours}.items()
        assert not set(defaults) & set(stored) - set(ours)


def test_files_in_the_words_of_transformers_4_57(llama_directory: Path, tmp_path: Path) -> None:
    """`tests/parity/test_other_environments.py` opens them there."""
    config = transformers.AutoConfig.from_pretrained(llama_directory)
    config.rope_parameters = {"rope_type": "linear", "rope_theta": 77_000.0, "factor": 2.0}
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    names = transformers.AutoTokenizer.from_pretrained(llama_directory)
    names.add_special_tokens({"extra_special_tokens": ["<|user|>", "<|end|>"]})
    names.save_pretrained(tmp_path / "base")
    model, tokenizer = load_hf(str(tmp_path / "base")).eval(), load_tokenizer(str(tmp_path / "base"))
    save_bundle(tmp_path / "bundle", model, tokenizer, OWN, GREEDY, {})
    facts = json.loads((tmp_path / "bundle" / "tokenizer_config.json").read_text())
    assert facts["tokenizer_class"] == "PreTrainedTokenizerFast" and facts["model_max_length"] == 160
    assert facts["model_input_names"] == ["input_ids", "attention_mask"]
    assert facts["additional_special_tokens"] == ["<|user|>", "<|end|>"] and "extra_special_tokens" not in facts
    stored = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert stored["rope_theta"] == 77_000.0 and stored["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert not [path for path in (str(tmp_path), "name_or_path") if path in json.dumps([facts, stored])]
    opened = open_model(tmp_path / "bundle")
    assert opened.tokenizer.fingerprint == tokenizer.fingerprint
    with torch.no_grad():
        assert torch.equal(opened.model.eval().hidden_states(IDS), model.hidden_states(IDS))


def test_layers_with_two_rotary_bases_in_the_words_of_transformers_4_57(tmp_path: Path) -> None:
    config = transformers.Gemma3TextConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, max_position_embeddings=160, layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"full_attention": {"rope_type": "linear", "rope_theta": 5e5, "factor": 8.0},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}},
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    spell_for_transformers_4(tmp_path, 160, torch.bfloat16)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert (stored["rope_theta"], stored["rope_local_base_freq"]) == (5e5, 2e4)
    assert stored["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters == config.rope_parameters


def test_code_of_a_repository_is_neither_run_nor_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", asked.append)  # by which transformers asks whether it may run the code
    written = {"model_type": "odd", "auto_map": {"AutoConfig": "odd.Odd"}, "rope_parameters": {"rope_theta": 5e5}}
    (tmp_path / "config.json").write_text(json.dumps(written))
    (tmp_path / "odd.py").write_text("raise SystemExit('executed')")
    spell_for_transformers_4(tmp_path, 160, torch.float32)
    assert asked == [] and json.loads((tmp_path / "config.json").read_text())["rope_theta"] == 5e5


NESTED = {"full_attention": {"rope_type": "linear", "rope_theta": 5e5, "factor": 8.0},
          "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}  # fmt: skip


@pytest.mark.parametrize("rope", [None, NESTED, {**NESTED, "full_attention": None}])
def test_architectures_that_never_had_the_words_of_transformers_4_57_are_left(tmp_path: Path, rope: dict) -> None:
    """Gemma 4 would take them for all that there is, and its own default could then not be opened."""
    config = transformers.Gemma4TextConfig(rope_parameters=copy.deepcopy(rope))
    config.save_pretrained(tmp_path)
    plain = transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters
    spell_for_transformers_4(tmp_path, 160, torch.float32)
    assert transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters == plain
    assert "rope_scaling" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("adapted", [False, True])
def test_a_model_without_a_longest_context_keeps_that_of_the_run(
    llama_directory: Path, tmp_path: Path, adapted: bool
) -> None:
    config = transformers.BloomConfig(vocab_size=300, hidden_size=32, n_layer=1, n_head=4)
    base, bundle, tokenizer = tmp_path / "base", tmp_path / "bundle", load_tokenizer(str(llama_directory))
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(base)
    tokenizer.hf.save_pretrained(base)
    with pytest.raises(ConfigError, match="model.context_length=null: bloom has no maximum; give a number of tokens"):
        load_hf(str(base))
    model = load_hf(str(base), context_length=40)
    write_adapter = partial(Adapter(model, 2).save, base=HFSource(str(base))) if adapted else None
    save_bundle(bundle, model, tokenizer, OWN, GREEDY, {}, write_adapter)
    assert open_model(bundle).model.config.context_length == 40
    assert adapted or load_hf(str(bundle)).config.context_length == 40, "the next run's base"


@pytest.mark.parametrize("asked", [None, torch.float16])
def test_weights_have_the_precision_of_the_base_or_the_one_asked_for(
    llama_directory: Path, tmp_path: Path, asked: torch.dtype | None
) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(llama_directory).to(torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    model = load_hf(str(tmp_path / "base"))
    assert model.head_weight.dtype == torch.float32 and model.base_dtype == torch.bfloat16
    save_bundle(tmp_path / "bundle", model, load_tokenizer(str(llama_directory)), OWN, GREEDY, {}, dtype=asked)
    wanted = asked or torch.bfloat16
    tensors = load_file(tmp_path / "bundle" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {wanted} and "lm_head.weight" not in tensors
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "bundle")
    assert theirs.dtype == wanted and theirs.lm_head.weight is theirs.model.embed_tokens.weight
    again = open_model(tmp_path / "bundle").model
    assert again.base_dtype == wanted and torch.equal(again.head_weight, model.head_weight.to(wanted).float())
    assert {oct(file.stat().st_mode & 0o777) for file in (tmp_path / "bundle").iterdir()} == {"0o644"}


def test_what_a_bundle_will_be_opened_with_is_tried(
    llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_hf(str(llama_directory))
    check_opens(tmp_path / "plain", model, torch.float32)
    assert not list((tmp_path / "plain").glob("*.safetensors"))
    Adapter(model, rank=2)
    check_opens(tmp_path / "adapted", model, torch.float32)

    def broken(directory: Path, *given: object) -> None:
        facts = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**facts, "rope_parameters": {"rope_type": "none such"}}))

    monkeypatch.setattr("instruct_lit.hf.bundles.spell_for_transformers_4", broken)
    refused = "the config.json of a bundle of LlamaForCausalLM cannot be written so that transformers opens it "
    with pytest.raises(ConfigError, match=f"before training: {refused}.*; nothing has been trained yet$"):
        check_opens(tmp_path / "broken", model, torch.float32)
    monkeypatch.undo()
    model.hf.config.intermediate_size += 8
    refused = r"transformers makes another LlamaForCausalLM of the config.json .*\(model.layers.0.mlp.down_proj.weight "
    with pytest.raises(ConfigError, match=refused):
        check_opens(tmp_path / "other", model, torch.float32)


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_that_peft_would_put_on_experts_is_refused_apart(tmp_path: Path, dora: bool) -> None:
    model = moe()
    adapter = Adapter(model, rank=2, dora=dora)
    adapter.save_config(tmp_path, HFSource("base"))
    refused = (
        "adapter.merge=false: peft does not open updates of down_proj, gate_proj, up_proj on DeepseekV3ForCausalLM"
    )
    with pytest.raises(ConfigError, match=f"{refused}, .*; use adapter.merge=true, or other adapter.targets$"):
        check_opens(tmp_path, model, torch.float32, adapter)
    other = moe()
    adapter = Adapter(other, rank=2, targets=["q_b_proj", "o_proj"], dora=dora)
    adapter.save_config(tmp_path, HFSource("base"))
    check_opens(tmp_path, other, torch.float32, adapter)
