"""How the loss of a micro-batch and its gradients are computed: the plain form, and the interface of faster ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from instruct_lit.core.data.collate import Batch
from instruct_lit.core.model.attention import AttentionLayout, PackedDocuments
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.training.loss import summed_cross_entropy


@dataclass(frozen=True)
class FitFacts:
    """What a `StepAccelerator` may rely on during one fit."""

    precision: str  # of Lightning: bf16-mixed, 32-true, …
    n_micro_batches: int  # of an optimizer step
    n_processes: int


class StepAccelerator:
    """Computes losses, gradients and their norm with autograd, one operation after the other.

    `instruct_lit.accel` has a subclass that gives the same numbers sooner.
    """

    model: CausalLM

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
        states = self.model.hidden_states(batch.input_ids, batch.position_ids, layout_of(batch), batch.loss_index)
        return summed_cross_entropy(states, self.model.head_weight, batch.targets, weights)

    def gradient_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The Euclidean norm of all gradients together, a float32 scalar."""
        return total_norm(gradients)

    def clip(self, optimizer: Optimizer, parameters: Sequence[nn.Parameter], norm: Tensor, max_norm: float) -> None:
        """Scale the gradients, whose norm is `norm`, so that it is at most `max_norm`."""
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of gradients of one precision, whole ones or shards."""
    norm = nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def layout_of(batch: Batch) -> AttentionLayout | None:
    """The attention layout of a batch; None for plain rows."""
    if batch.document_lengths is None:
        return None
    return PackedDocuments(batch.document_lengths, batch.prefix_length)
