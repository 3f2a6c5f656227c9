"""The loss of a micro-batch and its gradients: masked cross-entropy as a sum; its mean is taken once per step.

A NaN or infinite loss ends a run with the step, its examples and the remedy. `StepAccelerator` is the plain form, and
the interface of faster ones.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from instruct_lit.core.data.batching import Batch
from instruct_lit.core.data.example import listed
from instruct_lit.core.model.attention import AttentionLayout, PackedDocuments
from instruct_lit.core.model.causal import CHUNK, CausalLM, capped
from instruct_lit.errors import TrainingError


def summed_cross_entropy(
    hidden: Tensor, head_weight: Tensor, targets: Tensor, weights: Tensor, dft: bool = False, cap: float | None = None
) -> Tensor:
    """Return Σ weights · -log p(target), a float32 scalar with gradients for `hidden` and `head_weight`.

    The head runs on the supervised positions alone and in chunks, whose logits are computed again in the backward pass,
    so that logits of shape (tokens, vocabulary) are never stored. No supervised position gives 0 with zero gradients.

    Args:
        hidden: `(M, C)`, the states at the supervised positions; `head_weight` is `(V, C)`, the others are `(M,)`.
        dft: multiplies each weight by p(target), a constant for the gradient (Wu et al. 2025, eq. 9).
        cap: of `core.model.causal.capped`.
    """
    compute = partial(checkpoint, _chunk_loss, use_reentrant=False, preserve_rng_state=False)
    chunks = zip(hidden.split(CHUNK), targets.split(CHUNK), weights.split(CHUNK), strict=True)
    losses = (compute(h, head_weight, t, w, dft, cap) for h, t, w in chunks)
    return sum(losses, torch.zeros((), device=hidden.device))


def _chunk_loss(
    hidden: Tensor, head_weight: Tensor, targets: Tensor, weights: Tensor, dft: bool, cap: float | None
) -> Tensor:
    logits = F.linear(hidden, head_weight)  # (m, V)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits if cap is None else capped(logits, cap), targets, reduction="none")
    weights = weights * torch.exp(-losses.detach()) if dft else weights
    return (losses * weights).sum().float()


def sum_over_ranks(trainer: Trainer, values: Sequence[float] | torch.Tensor) -> Any:
    """Each value summed over all ranks: a list of counts, or a tensor."""
    if trainer.world_size == 1:
        return values
    if isinstance(values, torch.Tensor):
        return trainer.strategy.reduce(values, reduce_op="sum")
    counts = torch.tensor(values, dtype=torch.float64, device=trainer.strategy.root_device)
    sums = trainer.strategy.reduce(counts, reduce_op="sum").tolist()  # type: ignore[union-attr]
    return [int(value) if value.is_integer() else value for value in sums]


@dataclass(frozen=True)
class FitFacts:
    """What a `StepAccelerator` may rely on during one fit."""

    precision: str  # of Lightning: bf16-mixed, 32-true, …
    n_micro_batches: int  # of an optimizer step
    is_wrapped: bool  # in DDP, which reduces the gradients itself


class StepAccelerator:
    """Computes losses, gradients and their norm with autograd, one operation after the other."""

    model: CausalLM
    dft = False  # of `summed_cross_entropy`

    def attach(self, model: CausalLM) -> None:
        """Use `model` from now on."""
        self.model = model

    def start(self, optimizer: Optimizer, facts: FitFacts) -> None:
        """Prepare for a fit."""

    def stop(self, optimizer: Optimizer) -> None:
        """Undo `start`, after the last step of a fit."""

    def loss(self, batch: Batch, weights: Tensor) -> Tensor:
        """The sum of the losses of a micro-batch's supervised positions, each multiplied by its weight `(M,)`.

        Its backward pass adds to the gradients of the parameters. It may not be scaled afterwards: factors belong into
        the weights.
        """
        model = self.model
        states = model.hidden_states(batch.input_ids, batch.position_ids, layout_of(batch), batch.loss_index)
        return summed_cross_entropy(states, model.head_weight, batch.targets, weights, self.dft, model.logit_cap)

    def gradient_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The Euclidean norm of all gradients together, a float32 scalar."""
        norm = nn.utils.get_total_norm(gradients)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of shards

    def clip(self, optimizer: Optimizer, parameters: Sequence[nn.Parameter], norm: Tensor, max_norm: float) -> None:
        """Scale the gradients, whose norm is `norm`, so that it is at most `max_norm`."""
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)


def layout_of(batch: Batch) -> AttentionLayout | None:
    """The attention layout of a batch; None for plain rows."""
    if batch.document_lengths is None:
        return None
    return PackedDocuments(batch.document_lengths, batch.prefix_length)


class FiniteLosses:
    """Checks the mean losses of steps: at once on a CPU, where that is free, every `every` steps on a GPU."""

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self._waiting: list[tuple[int, list[Tensor], Tensor]] = []

    def add(self, step: int, example_ids: list[Tensor], loss: Tensor, last_good: Callable[[], str]) -> None:
        """Add the loss of a step over the examples of its micro-batches.

        Raises: TrainingError that `last_good` completes; on a CPU before the step changes a weight.
        """
        self._waiting.append((step, example_ids, loss))
        if loss.device.type != "cpu" and len(self._waiting) < self.every:
            return
        waiting, self._waiting = self._waiting, []
        values = torch.stack([loss for _, _, loss in waiting]).tolist()
        for (step, example_ids, _), value in zip(waiting, values, strict=True):
            if not math.isfinite(value):
                place = f"at step {step}, on examples {listed(torch.cat(example_ids).tolist())} of the data"
                raise TrainingError(self.message("train/loss", value, place, last_good()))

    @staticmethod
    def message(metric: str, value: float, place: str, last_good: str) -> str:
        """The message of a NaN or infinite loss."""
        return f"{metric} is {value} {place}; lower optimizer.lr, or set trainer.precision=32-true; {last_good}"
