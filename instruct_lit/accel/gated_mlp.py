"""The gated MLP of a model of transformers in training, act(gate) · up, which keeps its two inputs alone.

As the models write it, the activation is kept beside both; here the backward pass computes it again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from instruct_lit.accel.forwards import Forward

PARTS = ("gate_proj", "up_proj", "act_fn", "down_proj")
TOLERANCE = 1e-3  # relative difference in bf16 up to which two results count as equal


def gated_mlps(model: nn.Module) -> dict[nn.Module, Forward]:
    """Forward passes of the gated MLPs of a model, in training mode."""
    found = [m for m in model.modules() if all(hasattr(m, part) for part in PARTS) and "forward" not in vars(m)]
    return {m: partial(_forward, m, m.forward) for m in found if _is_gated(m)}


@torch.no_grad()
def _is_gated(mlp: Any) -> bool:
    """Whether an MLP is down(act(gate(x)) · up(x)) and no more, with an activation without weights.

    Each is measured, since layers of one class may differ, and on large numbers as well, which others clamp.
    """
    width = getattr(mlp.gate_proj, "in_features", None)
    if width is None or list(mlp.act_fn.parameters()) or len(signature(mlp.forward).parameters) != 1:
        return False
    device, training = next(mlp.parameters()).device, mlp.training
    x = torch.randn(2, width, generator=torch.Generator().manual_seed(0)).to(device)
    x = torch.cat((x, 1000 * x))
    mlp.eval()  # adapters may drop inputs
    with torch.autocast(device.type, torch.bfloat16):  # whatever the weights are in
        expected, found = mlp(x), mlp.down_proj(gated(mlp.gate_proj(x), mlp.up_proj(x), mlp.act_fn))
    mlp.train(training)
    return bool(((found - expected).norm(dim=-1) <= TOLERANCE * expected.norm(dim=-1)).all())


def _forward(mlp: Any, plain: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if not mlp.training:
        return plain(x)
    return mlp.down_proj(gated(mlp.gate_proj(x), mlp.up_proj(x), mlp.act_fn))


def gated(gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """activation(gate) · up, all `(…, M)`; the activation is elementwise."""
    return _Gated.apply(gate, up, activation)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return activation(gate) * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            gate = gate.detach().requires_grad_()
            activated = ctx.activation(gate)
        (grad_gate,) = torch.autograd.grad(activated, gate, grad * up)
        return grad_gate, grad * activated.detach(), None
