"""How likely tokens are under a model, position by position, without gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 512  # positions whose logits exist at once: 512 · 50257 · 4 bytes = 98 MiB in fp32


@torch.no_grad()
def token_losses(hidden: Tensor, head_weight: Tensor, targets: Tensor) -> Tensor:
    """Return -log p(target) `(M,)` in float32 for states `(M, C)`, a head `(V, C)` and targets `(M,)`."""
    losses = [
        F.cross_entropy(F.linear(h, head_weight).float(), t, reduction="none")
        for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    ]
    return torch.cat(losses) if losses else hidden.new_zeros(0, dtype=torch.float32)
