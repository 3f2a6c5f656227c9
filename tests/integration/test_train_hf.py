"""The train command on a model of transformers."""

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from instruct_lit.core.bundle import open_model

pytest.importorskip("transformers")
SMALL = (
    "model=hf", "template=chat", "data.source.n_examples=40", "data.split={train:24,val:8,test:8}",
    "generation.max_new_tokens=6", "callbacks.sample_answers.max_new_tokens=4", "trainer.log_every_n_steps=1",
    "trainer.max_epochs=1", "model.lr=1e-2", "data.max_length=160", "data.batch_size=8",
)  # fmt: skip


def metrics_of(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def test_a_run_its_bundle_and_what_starts_from_it(command: Callable, llama_directory: Path, tmp_path: Path) -> None:
    command("train", *SMALL, f"model.path={llama_directory}", "logger=none", "hydra.run.dir=run", cwd=tmp_path)
    assert not (tmp_path / "run" / "tensorboard").exists()
    metrics = metrics_of(tmp_path / "run")
    assert metrics["test/loss"] < metrics["base/test/loss"] and metrics["n_steps"] == 3
    assert json.loads((tmp_path / "run" / "bundle" / "instruct_lit.json").read_text())["kind"] == "hf"
    command("evaluate", "run=run", "hydra.run.dir=scores", "generation.max_new_tokens=6", cwd=tmp_path)
    again = [json.loads(line) for line in (tmp_path / "scores" / "responses.jsonl").read_text().splitlines()]
    before = [json.loads(line) for line in (tmp_path / "run" / "responses.jsonl").read_text().splitlines()]
    assert [row["response"] for row in again] == [row["response"] for row in before]


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OddConfig(LlamaConfig):
    model_type = "odd"

class OddForCausalLM(LlamaForCausalLM):
    config_class = OddConfig
"""


@pytest.mark.slow
def test_a_model_with_code_of_its_own_is_trained_bundled_and_opened_again(
    command: Callable, llama_directory: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(llama_directory, tmp_path / "model")
    facts = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddForCausalLM"}
    (folder / "config.json").write_text(json.dumps({**facts, "model_type": "odd", "auto_map": names}))
    (folder / "odd.py").write_text(CODE)
    trusted = (*SMALL, "model.trust_remote_code=true")
    errors = command("train", *trusted, "model.path=model", "hydra.run.dir=run", cwd=tmp_path).stderr
    assert "model.trust_remote_code=true: the bundle has the model's code, so it is not verified" in errors
    assert "Do you wish to run the custom code?" not in errors and (tmp_path / "run" / "bundle" / "odd.py").is_file()
    errors = command("evaluate", "run=run", cwd=tmp_path, status=2).stderr
    assert "needs the Python code in the repository; if you trust it, add model.trust_remote_code=true to t" in errors
    command("train", *trusted, "model.path=run", "fit=false", "hydra.run.dir=again", cwd=tmp_path)
    assert metrics_of(tmp_path / "again")["test/loss"] == pytest.approx(metrics_of(tmp_path / "run")["test/loss"])


@pytest.mark.slow
def test_peek_reads_its_tokenizer_and_template(command: Callable, llama_directory: Path, tmp_path: Path) -> None:
    seen = command("peek", *SMALL[:4], f"model.path={llama_directory}", "index=0", cwd=tmp_path).stdout
    assert "<|user|>" in seen and "<|assistant|>" in seen and "<|end|>" in seen
    profile = command("peek", *SMALL[:4], f"model.path={llama_directory}", cwd=tmp_path).stdout
    (n_gigabytes,) = re.findall(r"moments, (\d\.\d\d) more in a step of the largest batch", profile)
    assert 0 < float(n_gigabytes) < 0.1 and "if there were matrix products" in profile


@pytest.mark.slow
def test_what_cannot_go_together_is_said_before_anything_is_opened(command: Callable, tmp_path: Path) -> None:
    errors = command("train", "template=chat", cwd=tmp_path, status=2).stderr
    assert "template=chat: the chat template of the model's tokenizer requires model=hf" in errors
    errors = command("train", "model.gguf_file=x.gguf", cwd=tmp_path, status=2).stderr
    assert "model.gguf_file=x.gguf: requires model=hf" in errors
    errors = command("train", "model=hf", "model.path=.", "model.gguf_file=x.gguf", cwd=tmp_path, status=2).stderr
    assert "model.gguf_file=x.gguf: no such file in ." in errors


@pytest.mark.slow
def test_the_default_layout_suits_the_model_and_another_is_refused(
    command: Callable, llama_directory: Path, tmp_path: Path
) -> None:
    import transformers

    config = transformers.Llama4TextConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8,
        num_key_value_heads=1, max_position_embeddings=160, attention_chunk_size=32, num_local_experts=2,
        intermediate_size_mlp=16,
    )  # fmt: skip
    config.save_pretrained(tmp_path / "model")
    transformers.AutoTokenizer.from_pretrained(llama_directory).save_pretrained(tmp_path / "model")
    in_chunks = [*SMALL, "model.path=model", "model.pretrained=false"]
    errors = command("train", *in_chunks, "batching=packed", cwd=tmp_path, status=2).stderr
    assert "exact up to 32 inputs for this model, since its layers attend within chunks of 32 tokens" in errors
    assert "use batching=auto, batching=bucketed or data.max_length=33" in errors
    out = command("train", *in_chunks, "hydra.run.dir=run", cwd=tmp_path).stderr
    assert "batching: padded rows grouped by length" in out
    assert metrics_of(tmp_path / "run")["n_steps"] == 3


ADAPTER = (*SMALL, "evaluate_base=false", "adapter=lora", "adapter.rank=4", "adapter.merge=false")


@pytest.mark.slow
def test_a_run_with_an_adapter_keeps_the_adapter_alone(
    command: Callable, llama_directory: Path, tmp_path: Path
) -> None:
    out = command("train", *ADAPTER, f"model.path={llama_directory}", "hydra.run.dir=run", cwd=tmp_path).stderr
    assert re.search(r"adapter lora: [\d,]+ of [\d,]+ parameters are trained \(\d+\.\d+%\)", out)
    assert re.search(r"verified: \S+/run/bundle gives the same .* in instruct-lit, peft\n", out)
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["state_dict"] and all("lora_" in name for name in checkpoint["state_dict"])
    bundle = tmp_path / "run" / "bundle"
    assert (bundle / "adapter_model.safetensors").is_file() and not (bundle / "model.safetensors").exists()
    opened = open_model(tmp_path / "run")
    assert opened.template.name == "chat" and not any("lora_" in n for n, _ in opened.model.named_parameters())
    alone = ("run=run", "merge=false", "hydra.run.dir=out")
    refused = command("export", *alone, cwd=tmp_path, status=2).stderr
    assert "merge=false: the base model is a folder of this machine; give its hub id (base_model=" in refused
    done = command("export", *alone, "base_model=owner/name", cwd=tmp_path).stdout
    assert "out/hf gives the same losses, prompts and answers in peft" in done
    written = (tmp_path / "out/hf/adapter_config.json").read_text()
    assert '"base_model_name_or_path": "owner/name"' in written and str(llama_directory) not in written
    card = (tmp_path / "out/hf/README.md").read_text()
    assert "base_model: owner/name" in card and "base_model_relation: adapter" in card
    assert "library_name: peft" in card


@pytest.mark.slow
@pytest.mark.parametrize("model", ["nano", "llama"])
def test_a_run_with_an_adapter_is_resumed(command: Callable, llama_directory: Path, tmp_path: Path, model: str) -> None:
    chosen = [*ADAPTER[2:], "model=nano"] if model == "nano" else [*ADAPTER, f"model.path={llama_directory}"]
    command("train", *chosen, "hydra.run.dir=whole", cwd=tmp_path)
    command("train", *chosen, "trainer.max_epochs=2", "trainer.max_steps=2", "hydra.run.dir=two", cwd=tmp_path)
    command("train", *chosen, "ckpt_path=two", "adapter.merge=true", "hydra.run.dir=rest", cwd=tmp_path)
    assert metrics_of(tmp_path / "rest")["n_steps"] == metrics_of(tmp_path / "whole")["n_steps"] == 3
    assert (tmp_path / "rest" / "bundle" / "model.safetensors").is_file()


@pytest.mark.slow
def test_an_adapter_on_four_bits(command: Callable, llama_directory: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    import transformers

    config = transformers.AutoConfig.from_pretrained(llama_directory)
    config.update({"hidden_size": 64, "intermediate_size": 128, "head_dim": 16})  # 64 numbers share a scale
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    transformers.AutoTokenizer.from_pretrained(llama_directory).save_pretrained(tmp_path / "model")
    qlora = (*SMALL, "adapter=qlora", "adapter.rank=4", "model.path=model", "trainer.max_epochs=3")
    out = command("train", *qlora, "hydra.run.dir=run", cwd=tmp_path).stderr
    assert "adapter qlora: " in out
    metrics = metrics_of(tmp_path / "run")
    assert metrics["test/loss"] < metrics["base/test/loss"]
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["state_dict"] and all("lora_" in name for name in checkpoint["state_dict"])
    assert open_model(tmp_path / "run").template.name == "chat"


@pytest.mark.slow
def test_adapters_that_cannot_be_trained_say_so_before_anything_is_loaded(command: Callable, tmp_path: Path) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        errors = command("train", "model=hf", "model.path=no/such", "adapter=qlora", cwd=tmp_path, status=2).stderr
        assert "adapter=qlora: bitsandbytes is not installed" in errors
        errors = command("train", "optimizer=adamw_8bit", cwd=tmp_path, status=2).stderr
        assert "optimizer=adamw_8bit: needs bitsandbytes; pip install bitsandbytes" in errors
    errors = command("train", "adapter=qlora", "adapter.merge=true", cwd=tmp_path, status=2).stderr
    assert (
        "adapter.merge=true: merging into 4 bits" in errors
        and "adapter=qlora: 4-bit weights require model=hf" in errors
    )
    errors = command("train", "adapter=lora", "trainable=head", cwd=tmp_path, status=2).stderr
    assert "trainable=head: an adapter freezes all other weights; use adapter=none" in errors
