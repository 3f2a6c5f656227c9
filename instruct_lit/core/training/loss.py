"""Masked cross-entropy as a sum over supervised positions; its mean is taken once per optimizer step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from instruct_lit.core.model.causal import CHUNK


def summed_cross_entropy(hidden: Tensor, head_weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return Σ weights · -log p(target), a float32 scalar with gradients for `hidden` and `head_weight`.

    The head runs on the supervised positions alone and in chunks, whose logits are computed again in the backward pass,
    so that logits of shape (tokens, vocabulary) are never stored. No supervised position gives 0 with zero gradients.

    Args:
        hidden: `(M, C)`, the states at the supervised positions.
        head_weight: `(V, C)`.
        targets: `(M,)`.
        weights: `(M,)`.
    """
    total = torch.zeros((), device=hidden.device)
    for start in range(0, max(1, len(hidden)), CHUNK):
        rows = slice(start, start + CHUNK)
        total = total + checkpoint(
            _chunk_loss, hidden[rows], head_weight, targets[rows], weights[rows],
            use_reentrant=False, preserve_rng_state=False,
        )  # fmt: skip
    return total


def _chunk_loss(hidden: Tensor, head_weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    logits = F.linear(hidden, head_weight)  # (m, V)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (F.cross_entropy(logits, targets, reduction="none") * weights).sum().float()
