"""AdamW with decay on matrices only, and learning-rate schedules by optimizer step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from instruct_lit.accel.weight_copies import CHUNK, LowPrecisionWeights, huge_empty

Decay = Literal["cosine", "linear", "constant"]


def parameter_groups(named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict]:
    """Two groups: matrices with weight decay; biases and normalisation weights without."""
    trainable = [(name, p) for name, p in named_parameters if p.requires_grad]
    matrices = [p for _, p in trainable if p.ndim >= 2]
    vectors = [p for _, p in trainable if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def adamw(groups: list[dict], lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> AdamW:
    """AdamW (Loshchilov & Hutter 2019) in its fused form, which updates all parameters in one pass over memory."""
    return AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=True)


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW that also scales the gradients on its way and works with `LowPrecisionWeights`.

    `grad_scale`, a scalar tensor, divides the gradients as they are read, so that clipping needs no pass of its own.
    Where `working` has a copy of a parameter, gradients in half precision are converted and the copy is renewed piece
    by piece, while both are in the cache. State and arithmetic are torch's.
    """

    grad_scale: Tensor | None = None
    working: LowPrecisionWeights | None = None

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """Run the closure, which computes the gradients, and update the parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        apart = self._step_rounded() if self.working is not None else []
        super().step()
        for parameter, gradient in apart:
            parameter.grad = gradient
        return loss

    @torch.no_grad()
    def _step_rounded(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Update the parameters that have a rounded copy; return them with their gradients, which are taken away."""
        assert self.working is not None
        done = []
        scratch = torch.empty(CHUNK)
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                working = self.working.of.get(id(p))
                if working is None or p.grad is None or working.weight.dtype == p.dtype:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    for name in ("exp_avg", "exp_avg_sq"):
                        state[name] = huge_empty(p.numel(), p.dtype).zero_().view_as(p)
                state["step"] += 1
                pieces = working.pieces(state["exp_avg"], state["exp_avg_sq"])
                for weight, gradient, copy, exp_avg, exp_avg_sq in pieces:
                    converted = scratch[: len(gradient)].copy_(gradient)
                    torch._fused_adamw_(
                        [weight], [converted], [exp_avg], [exp_avg_sq], [], [state["step"]],
                        lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"],
                        amsgrad=False, maximize=False, grad_scale=self.grad_scale,
                    )  # fmt: skip
                    copy.copy_(weight)
                done.append((p, p.grad))
                p.grad = None
        return done


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all gradients together, a float32 scalar.

    The norm of a half-precision tensor is returned in half precision; taken row by row that rounding averages out.
    """
    if isinstance(gradients[0], DTensor):  # in shards, and always in fp32
        norm = torch.nn.utils.get_total_norm(gradients)
        assert isinstance(norm, DTensor)
        return norm.full_tensor()
    whole = [g for g in gradients if g.dtype.itemsize > 2]
    norms = [torch.linalg.vector_norm(g, dim=-1).flatten().float() for g in gradients if g.dtype.itemsize == 2]
    norms += [torch.stack(torch._foreach_norm(whole))] if whole else []
    return torch.linalg.vector_norm(torch.cat(norms))


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
