"""Muon on the matrices of the blocks, AdamW on the other parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.training.optimizer import adamw, parameter_groups


def muon(
    model: CausalLM,
    lr: float,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> MuonAndAdamW:
    """Muon (Jordan et al. 2024) for the matrices of the blocks; AdamW for embeddings, head, norms and biases.

    Muon's steps are scaled to the size of AdamW's (Liu et al. 2025), so one learning rate serves both.
    """
    in_blocks = {id(p) for p in model.blocks.parameters()}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    inner = [p for _, p in named if p.ndim == 2 and id(p) in in_blocks]
    others = [(name, p) for name, p in named if p.ndim != 2 or id(p) not in in_blocks]
    parts: list[Optimizer] = []
    if inner:
        parts.append(
            torch.optim.Muon(inner, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw")
        )
    if others:
        parts.append(adamw(parameter_groups(others, weight_decay), lr, betas, eps))
    return MuonAndAdamW(parts)


class MuonAndAdamW(Optimizer):
    """Optimizers that step together, as one optimizer for schedules, clipping and checkpoints."""

    def __init__(self, parts: list[Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._link()

    def _link(self) -> None:
        """Share groups and states with the parts, so that a learning rate set here is used there."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self.state.clear()
        for part in self.parts:
            self.state.update(part.state)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Run the closure, which computes the gradients, and update the parameters."""
        first, *others = self.parts
        loss = first.step(closure)
        for part in others:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._link()
