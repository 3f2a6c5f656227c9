"""Masked cross-entropy as a sum over supervised positions; means are taken once, over all tokens of an optimizer step.

The head runs on the supervised positions alone and in chunks, so logits of shape (tokens, vocabulary) are never
stored: memory does not grow with their product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from instruct_lit.model.likelihood import CHUNK
from instruct_lit.training.working import Working

BLOCK = 8  # positions whose softmax is taken at once, so that its passes over memory stay in the cache


def summed_cross_entropy(
    hidden: Tensor, head_weight: Tensor, targets: Tensor, weights: Tensor, working: Working | None = None
) -> Tensor:
    """Return Σ weights · -log p(target), a float32 scalar with gradients for `hidden` and `head_weight`.

    `hidden` `(M, C)` are the states at the supervised positions, `head_weight` is `(V, C)`, `targets` and `weights`
    are `(M,)`. Nothing supervised gives 0 with zero gradients. With `working` memory of the head the products use its
    copy, and the head's gradient goes into its buffer.
    """
    return _SummedCrossEntropy.apply(hidden, head_weight, targets, weights, working)


class _SummedCrossEntropy(torch.autograd.Function):
    """Computes loss and gradients chunk by chunk in the forward pass: softmax - one-hot needs no second look."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, head_weight: Tensor, targets: Tensor, weights: Tensor, working: Working | None
    ) -> Tensor:
        device_type = hidden.device.type
        dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else hidden.dtype
        ctx.working = working
        weight = head_weight.to(dtype) if working is None else working.weight
        with torch.autocast(device_type, enabled=False):
            return _SummedCrossEntropy._forward(ctx, hidden, head_weight, weight, targets, weights)

    @staticmethod
    def _forward(
        ctx: Any, hidden: Tensor, head_weight: Tensor, weight: Tensor, targets: Tensor, weights: Tensor
    ) -> Tensor:
        dtype, working = weight.dtype, ctx.working
        total = torch.zeros((), device=hidden.device)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = None
        for start in range(0, len(hidden), CHUNK):
            rows = slice(start, start + CHUNK)
            h = hidden[rows].to(dtype)
            logits = torch.mm(h, weight.t())  # (m, V)
            total += _to_gradient(logits, targets[rows], weights[rows])
            if grad_hidden is not None:
                grad_hidden[rows] = torch.mm(logits, weight).to(hidden.dtype)
            if needs_weight and working is not None:
                working.collect(logits, h)
            elif needs_weight:
                part = torch.mm(logits.t(), h)
                grad_weight = part.to(head_weight.dtype) if grad_weight is None else grad_weight.add_(part)
        if needs_weight and grad_weight is None and working is None:
            grad_weight = torch.zeros_like(head_weight)
        ctx.gradients = (grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:  # type: ignore[override]
        gradients, ctx.gradients = ctx.gradients, None
        # What went into the buffer in the forward pass can no longer be scaled alone: factors belong into the weights.
        assert ctx.working is None or abs(grad_output.item() - 1.0) < 1e-6, "scale the weights of the loss instead"
        # On the CPU a look at the factor is free and mostly spares a pass over (V, C); on a GPU it would wait.
        if grad_output.is_cuda or abs(grad_output.item() - 1.0) > 1e-6:
            gradients = tuple(g if g is None else g.mul_(grad_output.to(g.dtype)) for g in gradients)
        return gradients[0], gradients[1], None, None, None


def _to_gradient(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Overwrite the logits `(m, V)` with their gradient and return the summed loss.

    The arithmetic is in fp32, block by block: the gradient is weight · (softmax - one-hot).
    """
    total = torch.zeros((), device=logits.device)
    step = BLOCK if logits.device.type == "cpu" else len(logits)
    block = torch.empty(min(step, len(logits)), logits.shape[1], device=logits.device)
    for start in range(0, len(logits), step):
        rows = slice(start, start + step)
        own, target, weight = logits[rows], targets[rows, None], weights[rows, None]
        highest = own.amax(1, keepdim=True).float()
        values = block[: len(own)].copy_(own)
        at_target = values.gather(1, target)
        denominator = values.sub_(highest).exp_().sum(1, keepdim=True)
        total += ((denominator.log() + highest - at_target) * weight).sum()
        values.mul_(weight / denominator).scatter_add_(1, target, -weight)
        own.copy_(values)
    return total
