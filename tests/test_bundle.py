"""A bundle is a Hugging Face directory: same logits, same ids, the same prompt out of its chat template."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from instruct_lit.bundle import OURS, open_model, save_bundle
from instruct_lit.config import CONF
from instruct_lit.data.example import Example
from instruct_lit.data.template import Template
from instruct_lit.data.tokenizer import GPT2Tokenizer
from instruct_lit.errors import CheckpointError, ConfigError
from instruct_lit.model.gpt import GPT, GPTConfig
from instruct_lit.model.pretrained import load_gpt

TEMPLATES = {
    name: Template(**OmegaConf.load(CONF / "template" / f"{name}.yaml"))
    for name in ("alpaca", "alpaca_two_preambles", "phi3", "chatml")
}
GREEDY = {"max_new_tokens": 9, "temperature": 0.0, "top_k": None, "top_p": None, "repetition_penalty": 1.0}
TEXTS = ["Hello, world!", " é🙂\n\n\ttabs", "<|endoftext|> inside", "    code  spaces ", "ﬁ ½ 中文 עברית"]


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
    (tmp_path / "run" / "bundle" / OURS).write_text("{")
    with pytest.raises(CheckpointError, match=rf"{OURS}: damaged"):
        open_model(tmp_path / "run")
    (tmp_path / "run" / "bundle" / OURS).unlink()
    with pytest.raises(ConfigError, match=r"no bundle of ours, so the template must be given \(template=alpaca\)"):
        open_model(tmp_path / "run")


def test_a_save_that_fails_leaves_the_bundle_that_was_there(
    tmp_path: Path, tiny_model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "bundle", tiny_model)
    before = (folder / "model.safetensors").read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("instruct_lit.bundle.save_file", fail)
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
    assert theirs.generation_config.max_new_tokens == 9 and not theirs.generation_config.do_sample


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_transformers_tokenizer_gives_our_ids_and_prompts(
    tmp_path: Path, tiny_model: GPT, name: str, tokenizer: GPT2Tokenizer
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(save(tmp_path / "bundle", tiny_model, name))
    for text in TEXTS:
        assert theirs(text)["input_ids"] == tokenizer.encode(text), text
        example = Example(text, "x")
        messages = [{"role": "user", "content": text}]
        rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert rendered == TEMPLATES[name].prompt(example)
        answered = theirs.apply_chat_template([*messages, {"role": "assistant", "content": "yes"}], tokenize=False)
        assert answered == TEMPLATES[name].full_text(Example(text, "yes"))
        told = theirs.apply_chat_template([{"role": "system", "content": "Be short."}, *messages], tokenize=False)
        assert told == TEMPLATES[name].prompt(Example(text, "x", system="Be short."))
    assert theirs.eos_token_id == tokenizer.eot_id


def test_sampling_settings_travel(tmp_path: Path, tiny_model: GPT) -> None:
    folder = save(tmp_path / "bundle", tiny_model, temperature=0.7, top_p=0.9)
    config = json.loads((folder / "generation_config.json").read_text())
    assert (
        config["do_sample"] is True and config["temperature"] == 0.7 and config["top_p"] == 0.9 and config["top_k"] == 0
    )
