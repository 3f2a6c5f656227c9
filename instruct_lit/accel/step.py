"""The `StepAccelerator` that uses weight copies on a CPU, and CUDA graphs and compiled kernels on a GPU."""

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from instruct_lit.accel.adamw import AdamW, mixed_norm
from instruct_lit.accel.attention_varlen import suits_width
from instruct_lit.accel.cross_entropy import summed_cross_entropy
from instruct_lit.accel.cuda_graphs import StepGraphs
from instruct_lit.accel.forwards import ReplacedForwards
from instruct_lit.accel.gated_mlp import gated_mlps
from instruct_lit.accel.rms_norm import rms_norms
from instruct_lit.accel.shared_casts import shared_casts
from instruct_lit.accel.weight_copies import LowPrecisionWeights
from instruct_lit.core.data.batching import Batch
from instruct_lit.core.model.attention import AttentionLayout, CausalRows
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.training.loss import FitFacts, StepAccelerator, layout_of

Function = TypeVar("Function", bound=Callable[..., Any])


@cache
def compiled_form(function: Function) -> Function:
    """A function of tensors and modules compiled by `torch.compile`, for any number of tokens."""
    compiled: Any = torch.compile(function, dynamic=True)
    return compiled


class AcceleratedStep(StepAccelerator):
    """Computes the numbers of the plain step sooner.

    On a CPU with one process, `LowPrecisionWeights` and `AdamW` of this package work together. On a GPU with one
    process in bf16-mixed precision, `StepGraphs` launch a micro-batch at once. Without a compiler, `rms_norms`,
    `shared_casts` and `gated_mlps` save work and memory. A model in shards uses none of them.

    Args:
        compiled: Whether a GPU runs kernels of `torch.compile` for model and loss.
        cuda_graphs: Whether a GPU records CUDA graphs.
    """

    def __init__(self, compiled: bool = False, cuda_graphs: bool = False) -> None:
        self.compiled, self.cuda_graphs = compiled, cuda_graphs
        self.copies: LowPrecisionWeights | None = None
        self.replaced = ReplacedForwards({})
        self.graphs: StepGraphs | None = None
        self._sharded = False

    def attach(self, model: CausalLM) -> None:
        super().attach(model)
        model.compiler = compiled_form if self.compiled else None

    def start(self, optimizer: Optimizer, facts: FitFacts) -> None:
        self._sharded = any(hasattr(p, "full_tensor") for p in self.model.parameters())
        if facts.is_wrapped or self._sharded:
            return
        if self.compiled:  # torch compiles a function for few kinds of models; runs of a sweep share this process
            torch.compiler.reset()
        device, half = self.model.head_weight.device.type, facts.precision == "bf16-mixed"
        # Weights in bf16 are computed with under autocast, whatever the precision of the run.
        copies_in_half = half or any(p.dtype == torch.bfloat16 for p in self.model.parameters())
        copying = optimizer if device == "cpu" and isinstance(optimizer, AdamW) else None
        if not self.compiled:  # a compiler fuses these itself
            forwards = rms_norms(self.model)
            if half and copying is None:
                forwards |= shared_casts(self.model) | gated_mlps(self.model)
            self.replaced = ReplacedForwards(forwards).attach()
        others = {d_head for _, d_head in self.model.config.kv_heads if not suits_width(d_head)}
        if device == "cuda" and self.cuda_graphs and half and others:
            text = f"cuda_graphs: no kernel for packed documents has heads of width {max(others)}, so none is recorded"
            warnings.warn(text, stacklevel=2)
        elif device == "cuda" and self.cuda_graphs and half:
            self.graphs = StepGraphs(self._loss, self.model.parameters(), facts.n_micro_batches > 1)
            self.graphs.begin()
            self._noise = torch.zeros((), device=device)
        if copying is None:
            return
        dtype = torch.bfloat16 if copies_in_half else torch.float32
        # Gradients of several micro-batches are summed in fp32.
        gradient_dtype = dtype if facts.n_micro_batches == 1 else torch.float32
        self.copies = LowPrecisionWeights(self.model, self.model.head_weight, dtype, gradient_dtype).attach()
        copying.copies = self.copies

    def stop(self, optimizer: Optimizer) -> None:
        if self.graphs is not None:
            self.graphs.end()
            self.graphs = None
        if self.copies is not None and isinstance(optimizer, AdamW):
            self.copies.detach()
            optimizer.copies = self.copies = None
        self.replaced.detach()

    def loss(self, batch: Batch, weights: Tensor) -> Tensor:
        if self.graphs is not None:
            if self.model.embedding_noise is not None:  # a recorded step reads the current width from here
                self.model.embedding_noise = self._noise.fill_(self.model.embedding_noise)
            return self.graphs.loss(batch, weights)
        layout = layout_of(batch)
        return self._loss(batch.input_ids, batch.position_ids, layout, batch.loss_index, batch.targets, weights)

    def _loss(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        layout: AttentionLayout | None,
        loss_index: Tensor,
        targets: Tensor,
        weights: Tensor,
    ) -> Tensor:
        if layout is None and self.graphs is not None and self.model.takes_rows:
            layout = CausalRows()  # transformers' own mask of rows would wait for the GPU
        model = self.model
        states = model.hidden_states(input_ids, position_ids, layout, loss_index)
        head = model.head_weight  # of a model in shards it is whole from its forward pass on
        copy = self.copies.of.get(id(head)) if self.copies is not None else None
        return summed_cross_entropy(states, head, targets, weights, copy, model.compiler, self.dft, model.logit_cap)

    def gradient_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        return (
            mixed_norm(gradients) if any(g.dtype.itemsize == 2 for g in gradients) else super().gradient_norm(gradients)
        )

    def clip(self, optimizer: Optimizer, parameters: Sequence[nn.Parameter], norm: Tensor, max_norm: float) -> None:
        # The fused kernels of other devices do not read the scale.
        scales = parameters[0].device.type in ("cpu", "cuda")
        if isinstance(optimizer, AdamW) and scales and not self._sharded:
            optimizer.grad_scale = (norm / max_norm).clamp(min=1.0)
        else:
            super().clip(optimizer, parameters, norm, max_norm)
