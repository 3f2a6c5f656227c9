"""Weights that are not trained are held in half precision: which, when, and that the numbers stay those of the run."""

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from instruct_lit.accel.adamw import adamw
from instruct_lit.accel.step import AcceleratedStep
from instruct_lit.config import model_builders as build
from instruct_lit.core.model.attention import CausalRows
from instruct_lit.core.training.loss import FitFacts, StepAccelerator, summed_cross_entropy
from instruct_lit.hf import files
from instruct_lit.hf.adapters import Adapter
from instruct_lit.hf.files import load_hf, write_hf
from instruct_lit.hf.tokenizer import load_tokenizer
from instruct_lit.serving.chat_model import open_chat_models
from tests.configs import composed

transformers = pytest.importorskip("transformers")
HALF, FULL = torch.bfloat16, torch.float32


@pytest.fixture(scope="module")
def half_directory(llama_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Llama of the tests, stored in bf16."""
    folder = tmp_path_factory.mktemp("half")
    for file in llama_directory.glob("*.json*"):
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = load_tokenizer(str(llama_directory))
    write_hf(folder, load_hf(str(llama_directory)), tokenizer, tokenizer.hf.chat_template, {}, HALF)
    return folder


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that multiplies in bf16 by default; weights stay on the CPU."""
    monkeypatch.setattr(files, "computes_in_bf16", lambda: True)


@pytest.mark.parametrize(
    ("overrides", "trained", "frozen"),
    [
        (["model.dtype=bfloat16"], FULL, None),
        (["model.dtype=bfloat16", "adapter=lora"], FULL, HALF),
        (["model.dtype=bfloat16", "trainable=last_1_blocks"], FULL, HALF),
        pytest.param(["model.dtype=float32", "adapter=lora"], FULL, FULL, marks=pytest.mark.slow),
        pytest.param(["adapter=lora", "trainer.accelerator=cpu"], FULL, FULL, marks=pytest.mark.slow),
        pytest.param(["adapter=lora", "trainer.precision=32-true"], FULL, FULL, marks=pytest.mark.slow),
        (["adapter=lora"], FULL, HALF),
        pytest.param(["fit=false"], HALF, None, marks=pytest.mark.slow),
    ],
)
def test_what_is_trained_is_in_fp32_and_what_is_not_in_half(
    half_directory: Path, gpu: None, overrides: list[str], trained: torch.dtype, frozen: torch.dtype | None
) -> None:
    """The last rows are `model.dtype=auto` on a GPU."""
    config = composed("train", "model=hf", f"model.path={half_directory}", "template=chat", *overrides)
    model = build.model_of(config)
    build.adapt(config, model)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {trained}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == ({frozen} if frozen else set())
    assert model.base_dtype == HALF and model.no_layouts is None
    assert torch.isfinite(model.eval().hidden_states(torch.arange(9)[None]) @ model.head_weight.T).all()


def test_a_model_that_only_computes_keeps_the_precision_of_its_file_on_a_gpu(
    half_directory: Path, llama_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    for has in (False, True):
        monkeypatch.setattr(files, "computes_in_bf16", lambda has=has: has)
        for folder, pretrained in ((half_directory, True), (llama_directory, True), (llama_directory, False)):
            opened.append(load_hf(str(folder), pretrained, dtype=None).hf.dtype)
    assert opened == [FULL, FULL, FULL, HALF, FULL, HALF], "stored in bf16, in fp32, random"
    assert build.open_model(half_directory, as_stored=True).model.hf.dtype == HALF
    assert build.open_model(half_directory).model.hf.dtype == FULL
    (chat_model,) = open_chat_models([str(half_directory)], None, "cpu")
    assert chat_model.model.hf.dtype == HALF


def test_losses_are_those_of_weights_in_fp32_within_rounding(half_directory: Path) -> None:
    ids = torch.arange(40).view(2, 20)
    targets, losses = ids.flatten().roll(-1), []
    for dtype in (FULL, HALF):
        torch.manual_seed(0)
        model = load_hf(str(half_directory), dtype=dtype)
        Adapter(model, rank=4)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(6):
            with torch.autocast("cpu", HALF):
                states = model.hidden_states(ids, layout=CausalRows()).flatten(0, 1)
                loss = summed_cross_entropy(states, model.head_weight, targets, torch.full((40,), 1 / 40))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[5] < 0.9 * losses[0]
    assert losses[6:] == pytest.approx(losses[:6], rel=0.02)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_fast_step_beside_frozen_weights_in_half_is_the_plain_step(half_directory: Path, precision: str) -> None:
    batch = SimpleNamespace(
        input_ids=torch.arange(40), position_ids=torch.arange(40) % 20, document_lengths=[20, 20], prefix_length=0,
        loss_index=torch.arange(40), targets=torch.arange(40).roll(-1),
    )  # fmt: skip
    losses = []
    for step in (StepAccelerator(), AcceleratedStep()):
        torch.manual_seed(0)
        model = load_hf(str(half_directory), dtype=HALF).train()
        Adapter(model, rank=4)
        optimizer = adamw([{"params": [p for p in model.parameters() if p.requires_grad]}], lr=1e-2)
        step.attach(model)
        step.start(optimizer, FitFacts(precision, 1, False))
        for _ in range(6):
            with torch.autocast("cpu", HALF, enabled=precision == "bf16-mixed"):
                loss = step.loss(batch, torch.full((40,), 1 / 40))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        step.stop(optimizer)
    assert losses[5] < 0.9 * losses[0]
    assert losses[6:] == pytest.approx(losses[:6], rel=0.02)


class _LargestInFp32(TorchDispatchMode):
    """The elements of the largest fp32 tensor that any operation returns."""

    n = 0

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == FULL and out.device.type != "meta":
            self.n = max(self.n, out.numel())
        return out


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_model_in_half_precision_is_never_in_fp32(half_directory: Path, pretrained: bool) -> None:
    """Neither while it is opened and probed nor while it is merged; the bundle has the precision of the base."""
    with _LargestInFp32() as largest:
        model = load_hf(str(half_directory), pretrained, dtype=HALF)
        adapter = Adapter(model, rank=2)
        adapter.merge()
    assert largest.n < len(model.head_weight) * model.config.d_model, "the embedding"
    assert {p.dtype for p in model.parameters()} == {HALF}


def test_the_bundle_has_the_precision_of_the_base_or_the_given_one(half_directory: Path, tmp_path: Path) -> None:
    model, tokenizer = load_hf(str(half_directory), dtype=HALF), load_tokenizer(str(half_directory))
    for dtype in (HALF, FULL):
        folder = tmp_path / str(dtype)
        write_hf(folder, model, tokenizer, "", {}, dtype)
        assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {dtype}
        assert json.loads((folder / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


def test_a_base_that_is_only_evaluated_has_none_of_the_kernels_of_its_training(
    llama_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    opened = wraps(load_hf)(lambda source, **settings: given.update(settings))
    monkeypatch.setattr(files, "load_hf", opened)
    model = composed("train", "model=hf", f"model.path={llama_directory}", "model.liger=true").model
    build.model_of(OmegaConf.create({"model": model, "seed": 0, "paths": {"cache": "c"}}))
    assert given["liger"] is False and given["dtype"] is None
