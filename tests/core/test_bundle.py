"""A bundle is a Hugging Face directory: same logits, same ids, the same prompt out of its chat template."""

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import load_file

from instruct_lit.config.compose import CONF
from instruct_lit.core.bundle import OURS, open_model, save_bundle, save_tokenizer
from instruct_lit.core.data.encode import Encoder
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.core.model.pretrained import load_gpt
from instruct_lit.errors import CheckpointError, ConfigError
from instruct_lit.hf.special_tokens import GUARD

TEMPLATES = {
    name: Template(**OmegaConf.load(CONF / "template" / f"{name}.yaml"))
    for name in ("alpaca", "alpaca_two_preambles", "phi3", "chatml")
}
GREEDY = {"max_new_tokens": 9, "temperature": 0.0, "top_k": None, "top_p": None, "repetition_penalty": 1.0}
TEXTS = [
    "Hello, world!",
    "\n\nstarts with breaks",
    " é🙂\n\n\ttabs",
    "<|endoftext|> inside",
    "    code  spaces ",
    "ﬁ ½ 中文 עברית",
]
UNICODE = st.text(st.characters(codec="utf-8", exclude_characters=GUARD), max_size=12)


def save(folder: Path, model: GPT, template: str = "alpaca", **generation: object) -> Path:
    save_bundle(
        folder, model, GPT2Tokenizer(), TEMPLATES[template], {**GREEDY, **generation}, {"metrics": {"val/loss": 1.5}}
    )
    return folder


def test_trap_13_the_head_is_tied_and_comes_back(tmp_path: Path, tiny_model: GPT) -> None:
    loaded = load_gpt(save(tmp_path / "bundle", tiny_model))
    assert loaded.head_weight is loaded.wte.weight
    ids = torch.arange(20)[None]
    assert torch.equal(loaded.eval()(ids), tiny_model(ids))
    with torch.device("meta"):
        assert GPT(GPTConfig()).n_parameters == 124_439_808


def test_what_the_bundle_says_about_itself(tmp_path: Path, tiny_model: GPT) -> None:
    bundle = open_model(save(tmp_path / "run" / "bundle", tiny_model))
    assert bundle.template.next_turn.text == TEMPLATES["alpaca"].next_turn.text  # type: ignore[union-attr]
    assert bundle.template.text == TEMPLATES["alpaca"].text and bundle.about["metrics"] == {"val/loss": 1.5}
    assert open_model(tmp_path / "run").directory == tmp_path / "run" / "bundle"
    assert open_model(tmp_path / "run", TEMPLATES["phi3"]).template.name == "phi3"
    with pytest.raises(CheckpointError, match=r"run=.*nowhere: no such folder"):
        open_model(tmp_path / "nowhere")
    for damaged in ("{", "[" * 100_000):
        (tmp_path / "run" / "bundle" / OURS).write_text(damaged)
        with pytest.raises(CheckpointError, match=rf"{OURS}: damaged"):
            open_model(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty: no config.json there; give a run folder, a bundle or a Hugging"):
        open_model(tmp_path / "empty")
    (tmp_path / "run" / "bundle" / OURS).unlink()
    with pytest.raises(ConfigError, match=r"not a bundle of instruct-lit, so give a template \(template=alpaca\)"):
        open_model(tmp_path / "run")


def test_a_template_that_a_bundle_names_by_file_is_not_read(tmp_path: Path, tiny_model: GPT) -> None:
    folder = save(tmp_path / "bundle", tiny_model)
    (tmp_path / "secret").write_text("secret {{ response }}")
    about = json.loads((folder / OURS).read_text())
    about["template"]["path"] = str(tmp_path / "secret")
    (folder / OURS).write_text(json.dumps(about))
    assert open_model(folder).template.text == TEMPLATES["alpaca"].text


def test_a_save_that_fails_leaves_the_bundle_that_was_there(
    tmp_path: Path, tiny_model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "bundle", tiny_model)
    before = (folder / "model.safetensors").read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("instruct_lit.core.bundle.save_torch_state_dict", fail)
    with pytest.raises(OSError, match="No space left"):
        save(folder, tiny_model)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_transformers_gives_the_same_logits(tmp_path: Path, tiny_model: GPT) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(save(tmp_path / "bundle", tiny_model)).eval()
    ids = torch.randint(0, 50257, (2, 30), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, tiny_model(ids), rtol=0, atol=1e-5)
    assert not theirs.generation_config.do_sample


def test_the_limit_of_our_answers_does_not_cut_those_of_others(tmp_path: Path, tiny_model: GPT) -> None:
    """A `max_new_tokens` in generation_config.json would win over the `max_length` that lm-eval gives, for example."""
    transformers = pytest.importorskip("transformers")
    folder = save(tmp_path / "bundle", tiny_model)
    assert not {"max_new_tokens", "max_length"} & set(json.loads((folder / "generation_config.json").read_text()))
    assert open_model(folder).generation["max_new_tokens"] == 9  # ours, for our own commands
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    ids = torch.arange(5)[None]
    for limit, n_tokens in (({"max_length": 60}, 60), ({"max_new_tokens": 40}, 45)):
        written = theirs.generate(ids, attention_mask=torch.ones_like(ids), eos_token_id=-1, **limit)
        assert written.shape == (1, n_tokens)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_every_file_of_a_bundle_has_the_mode_of_the_umask(tmp_path: Path, tiny_model: GPT, umask: int) -> None:
    before = os.umask(umask)
    try:
        folder = save(tmp_path / "bundle", tiny_model)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o666 & ~umask}
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask


def test_large_weights_are_written_in_shards_and_read(
    tmp_path: Path, tiny_model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr("instruct_lit.core.bundle.MAX_SHARD_SIZE", "60KB")
    folder = save(tmp_path / "bundle", tiny_model)
    assert len(list(folder.glob("model-0*.safetensors"))) > 2 and (folder / "model.safetensors.index.json").is_file()
    ids = torch.arange(20)[None]
    assert torch.equal(load_gpt(folder).eval()(ids), tiny_model(ids))
    with torch.no_grad():
        theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()(ids).logits
        torch.testing.assert_close(theirs, tiny_model(ids), rtol=0, atol=1e-5)


def test_weights_have_the_precision_of_the_base(tmp_path: Path, tiny_model: GPT) -> None:
    tiny_model.base_dtype = torch.bfloat16
    folder = save(tmp_path / "bundle", tiny_model)
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    opened = load_gpt(folder)
    assert opened.base_dtype == torch.bfloat16 and opened.wte.weight.dtype == torch.float32
    assert torch.equal(opened.wte.weight, tiny_model.wte.weight.bfloat16().float())
    save_bundle(tmp_path / "whole", opened, GPT2Tokenizer(), TEMPLATES["alpaca"], GREEDY, {}, dtype=torch.float32)
    assert load_gpt(tmp_path / "whole").base_dtype == torch.float32


def ids_of(template: Template, tokenizer: GPT2Tokenizer, example: Example, whole: bool = False) -> list[int]:
    """The ids of a prompt here, or of a whole example without its last end-of-text."""
    encoder = Encoder(template, tokenizer, 1024)
    if not whole:
        return encoder.prompt_ids(example)
    ((_, encoded),) = encoder.encode([example])
    return encoded.ids.tolist()[:-1]


def messages_of(example: Example, whole: bool = False) -> list[dict[str, str]]:
    said = [("system", text) for text in example.system.split("\n\n")] if example.system else []
    for user, assistant in example.history:
        said += [("user", user), ("assistant", assistant)]
    said += [("user", example.instruction)] + ([("assistant", example.output)] if whole else [])
    return [{"role": role, "content": text} for role, text in said]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The tokenizer of a bundle with the template of that name, as transformers opens it."""
    transformers = pytest.importorskip("transformers")

    @cache
    def opened(name: str) -> Any:
        folder = tmp_path_factory.mktemp(name)
        save_tokenizer(folder, GPT2Tokenizer(), 64, TEMPLATES[name])
        return transformers.AutoTokenizer.from_pretrained(folder)

    return opened


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_transformers_tokenizer_gives_our_ids_and_prompts(
    name: str, theirs: Callable[[str], Any], tokenizer: GPT2Tokenizer
) -> None:
    opened, template = theirs(name), TEMPLATES[name]
    for text in TEXTS:
        assert opened(text, split_special_tokens=True)["input_ids"] == tokenizer.encode(text), text
        assert opened.decode(tokenizer.encode(text)) == text
    one = Example("Hello, world!", "yes")
    shown = opened.apply_chat_template(messages_of(one), tokenize=False, add_generation_prompt=True)
    assert shown == template.prompt(one)
    assert opened.eos_token_id == tokenizer.eot_id and opened.model_max_length == 64
    assert len(opened) == tokenizer.n_vocab


@pytest.mark.parametrize("name", list(TEMPLATES))
@given(texts=st.lists(st.sampled_from(TEXTS) | UNICODE, min_size=3, max_size=8))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_trap_5_conversations_get_our_ids_from_transformers(
    name: str, theirs: Callable[[str], Any], tokenizer: GPT2Tokenizer, texts: list[str]
) -> None:
    """System prompt, several turns, answers that begin with white space, end-of-text in what users and models said."""
    system, *said = texts
    history = tuple(zip(said[:-2:2], said[1:-1:2], strict=False))
    for example in (
        Example(said[-2], said[-1], "", {}, f"{system}\n\nBe brief.", history),
        Example(said[-2], said[-1], "", {}, "", history[:1]),
    ):
        for whole in (False, True):
            found = theirs(name).apply_chat_template(
                messages_of(example, whole), add_generation_prompt=not whole, return_dict=False
            )
            assert found == ids_of(TEMPLATES[name], tokenizer, example, whole)


def test_a_template_without_further_turns_shows_the_last_question(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    template = Template("one", "Q: {{ instruction }} A: {{ response }}!")
    save_tokenizer(tmp_path, tokenizer, 64, template)
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path)
    talk = messages_of(Example("And?", " So", history=(("Hello", "Hi"),)), whole=True)
    for n_messages, whole in ((3, False), (4, True)):
        found = opened.apply_chat_template(talk[:n_messages], return_dict=False)
        assert found == ids_of(template, tokenizer, Example("And?", " So"), whole)


def test_sampling_settings_travel(tmp_path: Path, tiny_model: GPT) -> None:
    folder = save(tmp_path / "bundle", tiny_model, temperature=0.7, top_p=0.9)
    config = json.loads((folder / "generation_config.json").read_text())
    assert (
        config["do_sample"] is True and config["temperature"] == 0.7 and config["top_p"] == 0.9 and config["top_k"] == 0
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on Windows")
def test_a_fifo_in_place_of_our_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "instruct_lit.json")
    with pytest.raises(CheckpointError, match=r"instruct_lit\.json: not a regular file"):
        open_model(tmp_path)
