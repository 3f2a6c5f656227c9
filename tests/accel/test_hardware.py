"""Speed, precision and FLOPs of this machine's matrix products."""

import pytest
import torch

from instruct_lit.accel import hardware
from instruct_lit.accel.hardware import default_precision, keep_freed_memory, matrix_rate, needed_flops
from instruct_lit.core.model.gpt import GPT


def test_precision_and_rate_of_this_machine() -> None:
    keep_freed_memory()
    assert default_precision("cpu") in ("bf16-mixed", "32-true")
    assert default_precision("mps") == "32-true", "whatever the processor beside it computes in"
    assert matrix_rate(torch.device("cpu"), "32-true") > 1e8


@pytest.mark.parametrize(("kind", "expected"), [("mps", "32-true"), ("xpu", None), ("cpu", None)])
def test_precision_on_other_devices(monkeypatch: pytest.MonkeyPatch, kind: str, expected: str | None) -> None:
    """Lightning trains on a CPU where there is another GPU than NVIDIA's, AMD's and Apple's."""
    monkeypatch.setattr(hardware, "best_device", lambda: torch.device(kind))
    assert default_precision("auto") == (expected or default_precision("cpu"))


def test_flops_by_definition(tiny_model: GPT) -> None:
    """Two for each weight in each product: forward, and for gradients of inputs and weights."""
    blocks, head = sum(p.numel() for p in tiny_model.blocks.parameters()), tiny_model.wte.weight.numel()
    assert needed_flops(tiny_model, 10, 3) == 6 * (10 * blocks + 3 * head)
    tiny_model.requires_grad_(False)
    assert needed_flops(tiny_model, 10, 3) == 2 * 10 * blocks + 4 * 3 * head
    tiny_model.blocks[1].requires_grad_(True)
    assert needed_flops(tiny_model, 10, 3) == 10 * (2 + 6) * blocks // 2 + 4 * 3 * head
