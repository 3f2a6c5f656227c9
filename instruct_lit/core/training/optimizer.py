"""AdamW with weight decay on matrices only, and learning-rate schedules by optimizer step."""

import math
from collections.abc import Iterable
from typing import Literal

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

Decay = Literal["cosine", "linear", "constant"]


def parameter_groups(named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict]:
    """Two groups of the trainable parameters: matrices with weight decay; biases and normalisation weights without."""
    trainable = [p for _, p in named_parameters if p.requires_grad]
    matrices, vectors = ([p for p in trainable if (p.ndim >= 2) is decays] for decays in (True, False))
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def adamw(groups: list[dict], lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> AdamW:
    """AdamW (Loshchilov & Hutter 2019) in its fused form, which updates all parameters in one pass over memory."""
    return AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=True)


def schedule(optimizer: Optimizer, n_steps: int, warmup_steps: int, decay: Decay, min_ratio: float = 0.0) -> LambdaLR:
    """Linear warm-up over `warmup_steps`, then cosine, linear or no decay to `min_ratio` of the peak at `n_steps`."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if decay == "constant":
            return 1.0
        progress = min(1.0, (step - warmup_steps) / max(1, n_steps - warmup_steps))
        shape = 0.5 * (1.0 + math.cos(math.pi * progress)) if decay == "cosine" else 1.0 - progress
        return min_ratio + (1.0 - min_ratio) * shape

    return LambdaLR(optimizer, factor)
