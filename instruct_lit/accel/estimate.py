"""An estimate of memory, from the tensors that a step keeps, and of time, from steps of shallow models."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from instruct_lit.accel.adamw import adamw
from instruct_lit.accel.cross_entropy import chunk_of
from instruct_lit.accel.hardware import default_precision, keep_freed_memory
from instruct_lit.accel.memory import STATES_BYTES
from instruct_lit.accel.step import AcceleratedStep
from instruct_lit.accel.throughput import synchronize
from instruct_lit.core.data.batching import Batch
from instruct_lit.core.model.causal import best_device
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.core.training.loss import FitFacts, StepAccelerator
from instruct_lit.core.training.optimizer import parameter_groups

DEPTHS = (1, 4)  # blocks of the measured models; each further block adds the same


@dataclass(frozen=True)
class Estimate:
    """Memory in bytes and seconds of one micro-batch with its optimizer step."""

    n_parameters: int
    states_bytes: int  # weights, gradients and the optimizer's moments
    activations_bytes: int  # kept for the backward pass of the largest batch, and the head's logits
    step_s: float

    @property
    def memory_bytes(self) -> int:
        """States and activations, without the libraries of torch."""
        return self.states_bytes + self.activations_bytes


def estimate(config: GPTConfig, typical: Sequence[Batch], largest: Batch, device: torch.device, bf16: bool) -> Estimate:
    """Measure models of one and four blocks with random weights and extrapolate linearly to the configured depth.

    The measured step is that of a run: its optimizer, and on a CPU its copies of the weights.

    Args:
        typical: Batches whose mean time is measured.
        largest: The batch whose memory is measured.
    """
    with torch.device("meta"):
        n_parameters = GPT(config).n_parameters
    low, high = DEPTHS[0], min(DEPTHS[1], config.n_layers)
    depths = (low, high) if high > low else (low,)
    seconds, activations = {}, {}
    keep_freed_memory()
    for depth in depths:
        step, model = AcceleratedStep(), GPT(replace(config, n_layers=depth)).to(device).train()
        step.attach(model)
        activations[depth] = kept_bytes(step, largest.to(device), bf16)
        optimizer = adamw(parameter_groups(model.named_parameters(), weight_decay=0.1), lr=0.0)
        step.start(optimizer, FitFacts("bf16-mixed" if bf16 else "32-true", n_micro_batches=1, n_processes=1))
        train_step(step, optimizer, typical[0].to(device), bf16)  # the first step allocates the optimizer's state
        fastest = [min(train_step(step, optimizer, batch.to(device), bf16) for _ in range(2)) for batch in typical]
        seconds[depth] = sum(fastest) / len(fastest)
    bytes_of_logit = (2 if bf16 else 4) + (4 if device.type == "cuda" else 0)  # a GPU also stores their softmax
    n_logits = min(chunk_of(device), max(1, int(largest.n_supervised))) * config.n_vocab
    return Estimate(
        n_parameters,
        STATES_BYTES * n_parameters,
        int(_at_depth(activations, config.n_layers)) + n_logits * bytes_of_logit,
        _at_depth(seconds, config.n_layers),
    )


def estimate_for(config: GPTConfig, batches: Sequence[Batch]) -> tuple[Estimate, str]:
    """The estimate for these batches on this machine's best device, and the device with its default precision."""
    by_size = sorted(batches, key=lambda batch: batch.input_ids.numel())
    typical = [by_size[int(len(by_size) * share)] for share in (0.25, 0.5, 0.75)]
    device, precision = best_device(), default_precision("auto")
    found = estimate(config, typical, by_size[-1], device, precision.startswith("bf16"))
    return found, f"{device.type} in {precision}"


def _at_depth(measured: dict[int, float] | dict[int, int], n_layers: int) -> float:
    """The straight line through one or two measurements, never falling."""
    (low, first), (high, second) = min(measured.items()), max(measured.items())
    per_block = max(0.0, (second - first) / (high - low)) if high > low else 0.0
    return first + (n_layers - low) * per_block


def _loss(step: StepAccelerator, batch: Batch, bf16: bool) -> torch.Tensor:
    with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=bf16):
        return step.loss(batch, batch.loss_weights)


def train_step(step: StepAccelerator, optimizer: torch.optim.Optimizer, batch: Batch, bf16: bool) -> float:
    """Take one optimizer step with clipped gradients and return its seconds."""
    start = time.perf_counter()
    optimizer.zero_grad()
    _loss(step, batch, bf16).backward()
    parameters = [p for p in step.model.parameters() if p.grad is not None]
    norm = step.gradient_norm([p.grad for p in parameters if p.grad is not None])
    step.clip(optimizer, parameters, norm, max_norm=1.0)
    optimizer.step()
    synchronize(batch.input_ids.device)
    return time.perf_counter() - start


def kept_bytes(step: StepAccelerator, batch: Batch, bf16: bool) -> int:
    """Bytes that the forward pass keeps for the backward pass, the parameters themselves left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in step.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = _loss(step, batch, bf16)
    del loss
    return sum(kept.values())
