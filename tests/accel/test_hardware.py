"""Speed, precision and FLOPs of this machine's matrix products."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from instruct_lit.accel import hardware
from instruct_lit.accel.hardware import default_precision, keep_freed_memory, matrix_rate, needed_flops
from instruct_lit.core.model.gpt import GPT
from instruct_lit.hf.model import HFModel
from instruct_lit.hf.trainable import choose_trainable


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
    assert needed_flops(tiny_model, 10, 3) == 2 * 10 * blocks + 2 * 3 * head
    tiny_model.ln_f.requires_grad_(True)
    assert needed_flops(tiny_model, 10, 3) == 2 * 10 * blocks + 4 * 3 * head
    tiny_model.blocks[1].requires_grad_(True)
    assert needed_flops(tiny_model, 10, 3) == 10 * (2 + 6) * blocks // 2 + 4 * 3 * head


@pytest.mark.parametrize("trained", ["all", "head", "last_1_block"])
def test_flops_of_experts_and_of_a_trained_part_are_those_that_torch_counts(trained: str) -> None:
    """A token meets the experts that are chosen for it; the norm and a head of its own lie above the blocks."""
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip
    hf = transformers.AutoModelForCausalLM.from_config(config, experts_implementation="eager")
    model = HFModel(hf)
    choose_trainable(model, trained)
    ids = torch.randint(99, (1, 60), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        model.logits(model.hidden_states(ids)[0]).logsumexp(-1).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    counted = sum(n for name, n in counts.items() if str(name) != "aten.bmm" and "attention" not in str(name))
    assert needed_flops(model, 60, 60) == pytest.approx(counted, rel=0.02)
