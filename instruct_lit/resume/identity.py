"""What a run has in common with the checkpoint that it resumes from."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from lightning import Trainer
from torch import Tensor

from instruct_lit.core.data.datamodule import InstructionData
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.errors import CheckpointError

LATER = ("seed", "optimizer", "best checkpoint", "adapter.alpha", "weight averaging")  # which old checkpoints lack


def identity_of(model: CausalLM, data: InstructionData, trainer: Trainer) -> dict[str, str]:
    """What a run must have in common with a checkpoint to resume it: what it learns, and in which order.

    Batches are counted over all processes: two processes with batches of 4 may resume a run of one with batches of 8.
    """
    n_processes, max_tokens = trainer.world_size, data.batching.max_tokens
    named = list(model.named_parameters())
    return {
        "model": str(model.config),
        "trained parameters": str(sum(p.numel() for _, p in named if p.requires_grad)),
        "frozen weights": fingerprint((name, p) for name, p in named if not p.requires_grad),
        **data.facts(),
        "data.batch_size over all processes": str(data.batching.batch_size * n_processes),
        "batching.max_tokens over all processes": str(max_tokens and max_tokens * n_processes),
        "trainer.accumulate_grad_batches": str(trainer.accumulate_grad_batches),
    }


def check_identity(saved: Mapping[str, str], present: Mapping[str, str]) -> None:
    """Raise CheckpointError that lists what differs between a checkpoint's run and this one."""
    different = [
        f"{name}: {saved.get(name)} in the checkpoint, {value} in this run"
        for name, value in present.items()
        if saved.get(name, value if name in LATER else None) != value
    ]
    if different:
        remedy = "give the settings of its config.yaml, or leave out ckpt_path= to start anew"
        raise CheckpointError("\n  ".join([f"ckpt_path: the checkpoint belongs to another run; {remedy}", *different]))


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Changes when names or values do, as far as sums in double precision tell."""
    facts, space = [], torch.empty(0, dtype=torch.float64)
    for name, tensor in tensors:
        t = tensor.detach().cpu() if tensor.device.type == "mps" else tensor.detach()
        if t.device != space.device or t.numel() > len(space):
            space = torch.empty(t.numel(), dtype=torch.float64, device=t.device)
        # One buffer for all, since new memory costs more than the sums; other strides would change their order.
        wide = space[: t.numel()].view(t.shape).copy_(t) if t.is_contiguous() else t.double()
        facts.append((name, float(wide.sum()), float(wide.norm())))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
