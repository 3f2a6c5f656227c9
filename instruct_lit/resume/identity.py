"""What a run has in common with the checkpoint that it resumes from."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from lightning import Trainer
from torch import Tensor

from instruct_lit.core.data.datamodule import InstructionData, hash_of
from instruct_lit.core.data.settings import NAMES
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
        **data_facts(data),
        "data.batch_size over all processes": str(data.batching.batch_size * n_processes),
        "batching.max_tokens over all processes": str(max_tokens and max_tokens * n_processes),
        "trainer.accumulate_grad_batches": str(trainer.accumulate_grad_batches),
    }


def data_facts(data: InstructionData) -> dict[str, str]:
    """What the order and content of the training data depend on, by name."""
    sources, masking = (*data.sources, *data.splits.files.values()), data.masking
    facts = [data.facts_of(source) for source in sources]
    split = b"".join(data.examples_of(name)[1].tobytes() for name in NAMES)
    names = [f"{s.name}-{hash_of([f['source'], f['filters']])[:12]}" for s, f in zip(sources, facts, strict=True)]
    return {
        "data": "+".join(names),
        "data.sets": str(getattr(data, "mixture", None)),
        "template": f"{data.template.name}-{hash_of(facts[0]['template'])[:12]}",
        "tokenizer": data.tokenizer.fingerprint[:16],
        **{f"data.{name}": str(facts[0][name]) for name in ("max_length", "on_long", "loss_on")},
        "split": hashlib.sha256(split).hexdigest()[:16],
        "data.mask_prompt": str(masking.mask_prompt if masking.prompt_weight == 1 else masking.prompt_weight),
        "data.seed": str(data.seed),
        "batching.grouping": data.batching.grouping,
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
