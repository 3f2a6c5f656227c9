"""Whole commands on a GPU that is pretended (`tests.pretended_gpu`): every tensor where it belongs, nothing that waits
within a recorded step, and the numbers and texts of the CPU."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

COMPILER = shutil.which("g++") or shutil.which("clang++")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")]
TRAINING = ("trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1", "data.batch_size=4",
            "scheduler.warmup_steps=0", "data=files", "data.path=d.jsonl", "generation.max_new_tokens=8",
            "n_test_responses=4", "verify=false")  # fmt: skip
OnGPU = Callable[..., tuple[str, int, int]]


@pytest.fixture(scope="module")
def on_gpu(tmp_path_factory: pytest.TempPathFactory) -> OnGPU:
    """`on_gpu("cuda", "train", "seed=1", cwd=folder)` runs a command; its output, and graphs recorded and replayed."""
    assert COMPILER is not None
    compiled = tmp_path_factory.mktemp("hooks")

    def run(device: str, name: str, *overrides: str, cwd: Path) -> tuple[str, int, int]:
        start = (sys.executable, "-m", "tests.pretended_gpu.command", COMPILER, str(compiled), device)
        root = str(Path(__file__).parents[2])
        environment = {
            **os.environ,
            "PYTHONPATH": root,
            "INSTRUCT_LIT_CACHE": str(cwd / "cache"),
            "HF_HUB_OFFLINE": "1",
        }
        done = subprocess.run(
            [*start, name, *overrides], capture_output=True, text=True, cwd=cwd, env=environment, timeout=900
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        recorded, replayed = map(int, re.findall(r"graphs: (\d+) recorded, (\d+) replayed", done.stderr)[-1])
        return done.stdout, recorded, replayed

    return run


@pytest.fixture
def folder(llama_directory: Path, tmp_path: Path) -> Path:
    """Where commands are started: records, and a model."""
    records = [{"instruction": f"Name the number after {n}.", "output": f"It is {n + 1}." + " the cat" * (n % 4)}
               for n in range(40)]  # fmt: skip
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    shutil.copytree(llama_directory, tmp_path / "model")
    return tmp_path


@pytest.mark.parametrize("more", [
    (), ("adapter=lora", "template=chat", "generation.repetition_penalty=1.2"),
    ("neftune_alpha=5", "loss=dft", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.1", "optimizer=muon"),
    ("batching=padded", "callbacks=ema", "model.activation_checkpointing=true", "generation.temperature=0.9"),
], ids=["plain", "adapter", "noise", "average"])  # fmt: skip
def test_training_is_that_of_the_cpu(on_gpu: OnGPU, command: Callable, folder: Path, more: tuple[str, ...]) -> None:
    given = (*TRAINING, "model=hf", "model.path=model", "model.context_length=160", *more)
    out, recorded, replayed = on_gpu(
        "cuda", "train", *given, "trainer.accelerator=gpu", "hydra.run.dir=gpu", cwd=folder
    )
    assert recorded >= 1 and replayed >= recorded, out  # at least the decoder's
    command("train", *given, "trainer.accelerator=cpu", "trainer.precision=32-true", "hydra.run.dir=cpu", cwd=folder)
    gpu, cpu = (json.loads((folder / name / "metrics.json").read_text()) for name in ("gpu", "cpu"))
    assert gpu["n_steps"] == cpu["n_steps"] == 4 and gpu["train/tokens"] == cpu["train/tokens"]
    for name in ("base/val/loss", "val/loss", "test/loss", "general/loss"):
        tolerance = 0.05 if more and "neftune" in more[0] else 0.01  # bf16 against fp32; another noise
        assert gpu[name] == pytest.approx(cpu[name], rel=tolerance), name
    base, ours = (
        [json.loads(line)["base_response"] for line in (folder / name / "responses.jsonl").read_text().splitlines()]
        for name in ("gpu", "cpu")
    )
    assert base == ours or "0.9" in str(more)  # of the base nothing was rounded; tokens of a seed may be drawn apart


KINDS: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 8,
    },
    "qwen3_5_text": {
        "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_layers_of_other_kinds_are_recorded(kind: str, on_gpu: OnGPU, command: Callable, folder: Path) -> None:
    """A window shorter than the examples, which are packed, and a recurrence, for which they are padded rows."""
    import transformers

    given = json.loads((folder / "model/config.json").read_text())
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
             "max_position_embeddings", "bos_token_id", "eos_token_id", "initializer_range", "num_hidden_layers")  # fmt: skip
    config = transformers.CONFIG_MAPPING[kind](head_dim=8, **{name: given[name] for name in names}, **KINDS[kind])
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    given = (*TRAINING, "model=hf", "model.path=model")
    out, recorded, replayed = on_gpu(
        "cuda", "train", *given, "trainer.accelerator=gpu", "hydra.run.dir=gpu", cwd=folder
    )
    assert recorded >= (2 if kind == "gemma3_text" else 1) and replayed >= recorded, out  # the other has no decoder's
    command("train", *given, "trainer.accelerator=cpu", "trainer.precision=32-true", "hydra.run.dir=cpu", cwd=folder)
    gpu, cpu = (json.loads((folder / name / "metrics.json").read_text()) for name in ("gpu", "cpu"))
    for name in ("base/val/loss", "val/loss", "test/loss"):
        assert gpu[name] == pytest.approx(cpu[name], rel=0.01), name


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_fp32_is_that_of_the_cpu_to_the_last_token(on_gpu: OnGPU, command: Callable, folder: Path, device: str) -> None:
    given = (*TRAINING, "model=hf", "model.path=model", "model.context_length=160", "trainer.precision=32-true",
             "generation.repetition_penalty=1.2", "generation.temperature=0.8", "generation.top_p=0.9")  # fmt: skip
    accelerator = {"cuda": "gpu", "mps": "mps"}[device]
    on_gpu(device, "train", *given, f"trainer.accelerator={accelerator}", "hydra.run.dir=gpu", cwd=folder)
    command("train", *given, "trainer.accelerator=cpu", "hydra.run.dir=cpu", cwd=folder)
    assert (folder / "gpu/responses.jsonl").read_text() == (folder / "cpu/responses.jsonl").read_text()
    weights = [torch.load(folder / name / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
               for name in ("gpu", "cpu")]  # fmt: skip
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=2e-5, msg=name)


RULES = """
import sys
from pathlib import Path
from tests.pretended_gpu import hooks
hooks.load(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
import pytest, torch
from tests.pretended_gpu.device import pretended_gpu
with pretended_gpu(sys.argv[3]):
    place = torch.device(sys.argv[3], 0)
    x, weight = torch.ones(2, device=place), torch.nn.Linear(2, 2).to(place).weight
    assert x.device == weight.device == place and (weight * x).sum().item() == pytest.approx(float(weight.sum()))
    for wrong in (lambda: x + torch.ones(2), lambda: torch.ones(3)[torch.ones(1, device=place).long()], lambda: x.numpy()):
        with pytest.raises((RuntimeError, TypeError), match="device|not supported"):
            wrong()
    if place.type == "mps":
        with pytest.raises(TypeError, match="float64"):
            x.double()
    else:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = x * 2
            with pytest.raises(RuntimeError, match="synchroniz"):
                x.sum().item()
        x.fill_(3)
        graph.replay()
        assert y.tolist() == [6, 6]
print("as on a GPU")
"""


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_the_rules_of_devices_hold(device: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", RULES, str(COMPILER), str(tmp_path), device]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300)
    assert done.stdout == "as on a GPU\n", done.stderr
