"""What is trained and what is frozen, by name."""

from pathlib import Path

import pytest

from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.gpt import GPT
from instruct_lit.errors import ConfigError
from instruct_lit.hf.files import load_hf
from instruct_lit.hf.trainable import choose_trainable


@pytest.fixture(params=["gpt", "llama"])
def model(request: pytest.FixtureRequest) -> CausalLM:
    if request.param == "gpt":
        return request.getfixturevalue("tiny_model")
    pytest.importorskip("transformers")
    folder: Path = request.getfixturevalue("llama_directory")
    return load_hf(str(folder))


def trained(model: CausalLM) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_all_and_the_head(model: CausalLM) -> None:
    everything = trained(model)
    choose_trainable(model, "all")
    assert trained(model) == everything
    choose_trainable(model, "head")
    assert trained(model) == ({"wte.weight"} if isinstance(model, GPT) else {"hf.model.embed_tokens.weight"})
    assert model.head_weight.requires_grad


def test_the_last_blocks_and_the_norm_behind_them(model: CausalLM) -> None:
    choose_trainable(model, "last_1_block")
    inside = "blocks.1." if isinstance(model, GPT) else "hf.model.layers.1."
    norm = {"ln_f.weight", "ln_f.bias"} if isinstance(model, GPT) else {"hf.model.norm.weight"}
    assert trained(model) == {n for n, _ in model.named_parameters() if n.startswith(inside)} | norm
    choose_trainable(model, "last_2_blocks")
    assert len(trained(model)) == 2 * len([n for n in trained(model) if n.startswith(inside)]) + len(norm)
    for n in (0, 3):
        with pytest.raises(ConfigError, match=f"trainable=last_{n}_blocks: the model has 2 blocks"):
            choose_trainable(model, f"last_{n}_blocks")


def test_a_pattern(model: CausalLM) -> None:
    choose_trainable(model, "*norm*" if not isinstance(model, GPT) else "*ln_*")
    assert trained(model) and all("norm" in name or "ln_" in name for name in trained(model))
    with pytest.raises(ConfigError, match="trainable=lst_2_blocks: no parameter matches; allowed are all, head"):
        choose_trainable(model, "lst_2_blocks")
