"""The estimate against what a model of full depth really keeps and takes."""

import numpy as np
import pytest
import torch

from instruct_lit.accel.estimate import _at_depth, estimate, kept_bytes
from instruct_lit.accel.step import AcceleratedStep
from instruct_lit.core.data.batching import Batch, Collator
from instruct_lit.core.data.encode import EncodedExample
from instruct_lit.core.model.gpt import GPT, GPTConfig

CONFIG = GPTConfig(n_vocab=100, context_length=32, d_model=16, n_layers=7, n_heads=2)


def attached() -> AcceleratedStep:
    step = AcceleratedStep()
    step.attach(GPT(CONFIG).train())
    return step


def batch(n_examples: int, layout: str = "packed") -> Batch:
    examples = [EncodedExample(i, np.arange(20) + i, np.arange(20) > 9) for i in range(n_examples)]
    return Collator(0, np.ones(100, dtype=np.int64), layout)(examples)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("bf16", [False, True])
def test_memory_of_the_whole_depth_is_that_of_the_straight_line(layout: str, bf16: bool) -> None:
    found = estimate(CONFIG, [batch(2, layout)], batch(4, layout), torch.device("cpu"), bf16)
    step = attached()
    model = step.model
    assert found.n_parameters == model.n_parameters and found.states_bytes == 16 * model.n_parameters
    n_logits = min(512, batch(4).n_supervised) * 100 * (2 if bf16 else 4)
    assert found.activations_bytes - n_logits == pytest.approx(kept_bytes(step, batch(4, layout), bf16), rel=0.02)
    assert found.memory_bytes == found.states_bytes + found.activations_bytes and found.step_s > 0


def test_larger_batches_keep_more() -> None:
    small, large = (kept_bytes(attached(), batch(n), False) for n in (8, 16))
    assert 1.8 < large / small < 2.2


def test_the_line_by_hand() -> None:
    assert _at_depth({1: 10.0, 4: 16.0}, 12) == 32.0
    assert _at_depth({1: 10.0, 4: 9.0}, 12) == 10.0  # noise never makes depth free
    assert _at_depth({1: 10.0}, 1) == 10.0
