"""AdamW that clips gradients and renews low-precision weight copies in the pass that updates the parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from instruct_lit.accel.compat_torch import copy_all, fused_adamw, norm_of_each
from instruct_lit.accel.weight_copies import CHUNK, LowPrecisionWeights, huge_empty


def adamw(groups: list[dict], lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> AdamW:
    """AdamW (Loshchilov & Hutter 2019) in its fused form, which updates all parameters in one pass over memory."""
    return AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=True)


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW that also scales the gradients and updates `LowPrecisionWeights`.

    `grad_scale`, a scalar tensor, divides the gradients as they are read, so that clipping needs no pass of its own.
    A parameter with a copy in `copies` is updated piece by piece: its half-precision gradient is converted and its copy
    renewed while both are in the cache. State and arithmetic are torch's.
    """

    grad_scale: Tensor | None = None
    copies: LowPrecisionWeights | None = None

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """Run the closure, which computes the gradients, and update the parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        updated = self._step_copied() if self.copies is not None else []
        super().step()
        for parameter, gradient in updated:
            parameter.grad = gradient
        return loss

    @torch.no_grad()
    def _step_copied(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Update the parameters that have a copy; return them with their gradients, which are detached from them."""
        assert self.copies is not None
        updated = []
        scratch = torch.empty(CHUNK)
        for group in self.param_groups:
            pieces: list[tuple[Tensor, ...]] = []
            copied = [p for p in group["params"] if p.grad is not None and self._is_rounded(p)]
            self._start([p for p in copied if not self.state[p]])
            for p in copied:
                copy, state = self.copies.of[id(p)], self.state[p]
                state["step"] += 1
                pieces += [(*piece, state["step"]) for piece in copy.pieces(state["exp_avg"], state["exp_avg_sq"])]
                updated.append((p, p.grad))
                p.grad = None
            for batch in _batches(pieces):
                weights, gradients, rounded, exp_avgs, exp_avg_sqs, steps = map(list, zip(*batch, strict=True))
                sizes = [len(weight) for weight in weights]
                converted = list(scratch[: sum(sizes)].split(sizes))
                copy_all(converted, gradients)
                fused_adamw(weights, converted, exp_avgs, exp_avg_sqs, steps, self.grad_scale, group)
                copy_all(rounded, weights)
        return updated

    def _is_rounded(self, parameter: nn.Parameter) -> bool:
        copy = self.copies.of.get(id(parameter)) if self.copies is not None else None
        return copy is not None and copy.weight.dtype != parameter.dtype

    def _start(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make the state of parameters, the moments side by side: on huge pages of its own each would waste a part."""
        sizes = [p.numel() for p in parameters]
        moments = [huge_empty(sizes, parameters[0].dtype if parameters else torch.float32) for _ in range(2)]
        for p, *of_one in zip(parameters, *moments, strict=True):
            exp_avg, exp_avg_sq = (x.zero_().view_as(p) for x in of_one)
            self.state[p] = {"step": torch.zeros(()), "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}


def _batches(pieces: list[tuple[Tensor, ...]]) -> Iterator[list[tuple[Tensor, ...]]]:
    """The pieces in order, several small ones at once, which together stay in the cache like a large one."""
    batch: list[tuple[Tensor, ...]] = []
    n = 0
    for piece in pieces:
        if batch and n + len(piece[0]) > CHUNK:
            yield batch
            batch, n = [], 0
        batch.append(piece)
        n += len(piece[0])
    if batch:
        yield batch


def mixed_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of gradients of which some are in half precision, a float32 scalar.

    The norm of a half-precision tensor is rounded to half precision; computed row by row that rounding averages out.
    """
    half = [g for g in gradients if g.dtype.itemsize == 2]
    norms = [torch.linalg.vector_norm(g, dim=-1).flatten().float() for g in half]
    if len(half) < len(gradients):
        norms.append(norm_of_each([g for g in gradients if g.dtype.itemsize > 2]))
    return torch.linalg.vector_norm(torch.cat(norms))
