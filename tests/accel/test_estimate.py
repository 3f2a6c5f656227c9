"""The estimate against what a step of the whole model really needs and takes."""

from typing import Any

import numpy as np
import pytest
import torch

from instruct_lit.accel import estimate as module
from instruct_lit.accel import install, kernel_heap
from instruct_lit.accel.step import AcceleratedStep
from instruct_lit.core.data.batching import Batch, Collator
from instruct_lit.core.data.encode import EncodedExample
from instruct_lit.core.model import attention
from instruct_lit.core.model.attention import KERNELS, CausalRows
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.gpt import GPT, GPTConfig

CONFIG = GPTConfig(n_vocab=100, context_length=32, d_model=16, n_layers=7, n_heads=2)


def attached() -> AcceleratedStep:
    step = AcceleratedStep()
    step.attach(GPT(CONFIG).train())
    return step


def batch(n_examples: int, layout: str = "packed", n_tokens: int = 20) -> Batch:
    examples = [
        EncodedExample(i, np.arange(n_tokens) + i, np.arange(n_tokens) > n_tokens // 2 - 1) for i in range(n_examples)
    ]
    return Collator(0, np.ones(256, dtype=np.int64), layout)(examples)  # type: ignore[arg-type]


def llama(adapter: bool = False, checkpointing: int = 0, n_bits: int = 16, n_layers: int = 4) -> CausalLM:
    transformers = pytest.importorskip("transformers")
    from instruct_lit.hf.adapters import Adapter
    from instruct_lit.hf.model import HFModel
    from instruct_lit.hf.trainable import train_in_fp32

    shape = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=n_layers, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=256, tie_word_embeddings=True,
    )  # fmt: skip
    dtype = torch.bfloat16 if adapter else torch.float32
    model = HFModel(transformers.AutoModelForCausalLM.from_config(shape, dtype=dtype), None, checkpointing)
    if adapter:
        Adapter(model)
        if n_bits == 4:
            module.in_four_bits(model)
        train_in_fp32(model)
    return model


@pytest.mark.parametrize(("adapter", "bf16"), [(True, True), pytest.param(False, False, marks=pytest.mark.slow)])
def test_a_step_without_values_needs_what_a_step_needs(
    monkeypatch: pytest.MonkeyPatch, adapter: bool, bf16: bool
) -> None:
    packed, make, steps = batch(8), module.adamw, []

    def needed() -> module.StepMemory:
        model = llama(adapter=adapter, checkpointing=2 * adapter, n_layers=2)
        steps.append(step := module.our_step(model, bf16))
        return module.step_memory(model, lambda: module.batch_loss(step, packed, bf16), copies=step.copies)

    def with_copies(*arguments: Any, **options: Any) -> Any:
        optimizer = make(*arguments, **options)
        optimizer.copies = steps[-1].copies
        return optimizer

    with module.counting(on_gpu=False):
        counted = needed()
    install()
    monkeypatch.setattr(kernel_heap, "in_thread", False)  # what another thread makes is not counted
    monkeypatch.setattr(module, "adamw", with_copies)
    real = needed()
    assert [counted.states, counted.kept] == pytest.approx([real.states, real.kept], rel=0.02)
    if not bf16:  # there the update has a buffer larger than this model
        assert counted.peak == pytest.approx(real.peak, rel=0.02)


def test_the_parts_of_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "default_precision", lambda accelerator: "bf16-mixed")
    found, _ = module.estimate(lambda: GPT(CONFIG), [batch(4)])
    n = GPT(CONFIG).n_parameters
    assert found.n_parameters == n and found.states_bytes == pytest.approx(16 * n, rel=0.01)  # and numbers of steps
    assert found.activations_bytes > 0 and found.step_s > 0 and not found.at_least


def counted(compiled: bool = False, **options: Any) -> module.StepMemory:
    packed = batch(8)
    with module.counting(on_gpu=True):
        model = llama(**options)
        step = module.our_step(model, bf16=True, compiled=compiled)
        return module.step_memory(model, lambda: module.batch_loss(step, packed, bf16=True))


@pytest.mark.slow
def test_what_saves_memory_is_counted() -> None:
    whole, adapter, four_bits = counted(), counted(adapter=True), counted(adapter=True, n_bits=4)
    assert whole.states > adapter.states > four_bits.states
    assert whole.kept > adapter.kept > 0.9 * four_bits.kept
    every, second = (counted(adapter=True, checkpointing=n).kept for n in (1, 2))
    assert every < second < adapter.kept and second - every == pytest.approx(adapter.kept - second, rel=0.25)


@pytest.mark.slow
def test_a_step_kernel_by_kernel_keeps_about_what_compiled_blocks_keep() -> None:
    plain, compiled = counted(), counted(compiled=True)
    assert 0.9 * plain.kept < compiled.kept < plain.kept and compiled.peak < plain.peak


@pytest.mark.parametrize("on_gpu", [False, True])
def test_kernels_that_are_installed_during_a_count_stay_and_take_no_part(on_gpu: bool) -> None:
    before = KERNELS[:]
    KERNELS.clear()
    try:
        with module.counting(on_gpu):
            install()  # as the first model of a process does
            rows = torch.zeros(1, 5, 2, 8, dtype=torch.bfloat16)
            assert (attention.try_kernels(CausalRows(), rows, rows, rows, 0.0, None) is None) == on_gpu
        assert [kernel.__name__ for kernel in KERNELS][1:3] == ["attend_rows", "attend_varlen"]  # type: ignore[attr-defined]
    finally:
        KERNELS[:] = before


def test_larger_batches_keep_more() -> None:
    small, large = (module.kept_bytes(attached(), batch(n), False) for n in (8, 16))
    assert 1.8 < large / small < 2.2


def test_the_line_by_hand() -> None:
    assert module._at_depth({1: 10.0, 4: 16.0}, 12) == 32.0
    assert module._at_depth({1: 10.0, 4: 9.0}, 12) == 10.0  # noise never makes depth free
    assert module._at_depth({1: 10.0}, 1) == 10.0
