"""An estimate of memory, from a step of tensors without values, and of time, from steps of shallow models."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from instruct_lit.accel import attention_products, attention_varlen, cross_entropy, kernel_heap, weight_copies
from instruct_lit.accel.adamw import AdamW, adamw
from instruct_lit.accel.attention_groups import Group, document_groups
from instruct_lit.accel.attention_varlen import VarlenDocuments
from instruct_lit.accel.compat_torch import LiveTensors, no_values, values
from instruct_lit.accel.glibc_heap import HeapTensors
from instruct_lit.accel.hardware import default_precision, keep_freed_memory, matrix_rate, needed_flops
from instruct_lit.accel.step import AcceleratedStep
from instruct_lit.accel.throughput import synchronize
from instruct_lit.accel.weight_copies import LowPrecisionWeights
from instruct_lit.core.data.batching import Batch
from instruct_lit.core.model import attention
from instruct_lit.core.model.causal import CausalLM, best_device
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.core.training.loss import FitFacts, StepAccelerator
from instruct_lit.core.training.optimizer import parameter_groups

DEPTHS = (1, 4)  # blocks of the measured models; each further block adds the same


@dataclass(frozen=True)
class Estimate:
    """Memory in bytes and seconds of one micro-batch with its optimizer step."""

    n_parameters: int
    states_bytes: int  # weights, and of trained ones the gradients and the optimizer's moments
    activations_bytes: int  # what a step of the largest batch needs beside them
    step_s: float
    at_least: bool = False  # whether `step_s` is a lower bound: what the matrix products alone take

    @property
    def memory_bytes(self) -> int:
        """States and activations, without the libraries of torch."""
        return self.states_bytes + self.activations_bytes


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step."""

    states: int  # weights, and of trained ones gradients and the optimizer's moments
    kept: int  # by the forward pass for the backward pass
    peak: int  # of everything at once, on a CPU with the holes of the heap


def estimate(
    make: Callable[[], CausalLM],
    batches: Sequence[Batch],
    compiled: bool = False,
    four_bits: bool = False,
    n_micro_batches: int = 1,
) -> tuple[Estimate, str]:
    """The estimate for these batches on this machine's best device, and the device with its default precision.

    The memory is that of the largest batch, the time the mean of three. For our GPT, models of one and four blocks are
    measured and extrapolated; for others, the needed matrix products are divided by this machine's rate.

    Args:
        make: makes the model, inside `counting`.
        compiled: whether the run has `compile=true`.
        four_bits: whether the frozen layers of the blocks are in NF4.
        n_micro_batches: of an optimizer step; the time is that of one.
    """
    by_size = sorted(batches, key=lambda batch: batch.input_ids.numel())
    typical = [by_size[int(len(by_size) * share)] for share in (0.25, 0.5, 0.75)]
    device, precision = best_device(), default_precision("auto")
    on_gpu, bf16 = device.type == "cuda", precision.startswith("bf16")
    with counting(on_gpu):
        model = make()
        n_parameters = model.n_parameters
        flops = [needed_flops(model, batch.n_tokens, int(batch.n_supervised)) for batch in typical]
        if four_bits:
            in_four_bits(model)
        memory = memory_of(model, by_size[-1], bf16, compiled and on_gpu, n_micro_batches)
    activations = memory.peak - memory.states
    if isinstance(model, GPT):
        step_s = _measured(model.config, typical, device, bf16)
    else:
        step_s = sum(flops) / len(flops) / matrix_rate(device, precision)
    found = Estimate(n_parameters, memory.states, activations, step_s, at_least=not isinstance(model, GPT))
    return found, f"{device.type} in {precision}"


@contextmanager
def counting(on_gpu: bool) -> Iterator[None]:
    """Inside, tensors have no values and models compute as on a GPU, or as on a CPU, whatever this machine has."""
    with (
        patch.object(attention, "try_kernels", attention_varlen.attend_varlen if on_gpu else _attend_on_cpu),
        patch.object(cross_entropy, "counts_as_gpu", on_gpu),
        patch.object(kernel_heap, "in_thread", False),
        patch.object(kernel_heap, "_known", set()),
        patch.object(weight_copies, "huge_empty", lambda sizes, dtype: [torch.empty(n, dtype=dtype) for n in sizes]),
        patch.object(attention_products, "document_groups", _document_groups),
        patch.object(attention_varlen, "suits", lambda q, dropout: dropout == 0.0),
        patch.object(attention_varlen, "VarlenDocuments", _varlen_documents),
        no_values(),
    ):
        yield


def _attend_on_cpu(layout: Any, *arguments: Any) -> Tensor | None:
    is_rows = isinstance(layout, attention.CausalRows)
    return (attention_products.attend_rows if is_rows else attention_products.attend_documents)(layout, *arguments)


# Values decide where documents begin and what is in a group.


def _varlen_documents(lengths: Sequence[int], n_prefix: int, device: torch.device) -> VarlenDocuments:
    with values():
        return VarlenDocuments(lengths, n_prefix, torch.device("cpu"))


def _document_groups(
    lengths: Sequence[int], n_prefix: int, n_shared: int, like: Tensor, window: int | None
) -> list[Group]:
    with values():
        return document_groups(lengths, n_prefix, n_shared, torch.empty(0, dtype=like.dtype), window)


def memory_of(
    model: CausalLM, batch: Batch, bf16: bool, compiled: bool = False, n_micro_batches: int = 1
) -> StepMemory:
    """The memory of a step of ours of micro-batches like `batch`, inside `counting`."""
    step = our_step(model, bf16, compiled, n_micro_batches)
    memory = step_memory(model, lambda: batch_loss(step, batch, bf16), None, step.copies, n_micro_batches)
    kernels = kernel_heap.kernel_bytes() if bf16 and step.copies is not None else 0
    return replace(memory, peak=memory.peak + kernels)


def our_step(model: CausalLM, bf16: bool, compiled: bool = False, n_micro_batches: int = 1) -> AcceleratedStep:
    """A step of ours inside `counting`; on a CPU it has copies of the weights."""
    step = AcceleratedStep(compiled)
    step.attach(model.train())
    make = torch.optim.SGD if cross_entropy.counts_as_gpu else AdamW
    step.start(make(model.parameters()), FitFacts("bf16-mixed" if bf16 else "32-true", n_micro_batches, False))
    model.compiler = _partitioned if compiled else None
    return step


@cache
def _partitioned(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that keeps what it keeps under `torch.compile`, without its kernels."""
    if function.__module__ == cross_entropy.__name__:  # one kernel without intermediate results
        return lambda logits, *_: torch.zeros(())
    return torch.compile(function, backend="aot_eager_decomp_partition", dynamic=True)


def step_memory(
    model: nn.Module,
    loss_of: Callable[[], Tensor],
    live: LiveTensors | None = None,
    copies: LowPrecisionWeights | None = None,
    n_micro_batches: int = 1,
) -> StepMemory:
    """The memory of a training step with AdamW, inside `counting`.

    Args:
        live: an instance of a subclass that looks closer.
        copies: the weights that a CPU multiplies with, and their gradients.
        n_micro_batches: of the step; those after the first find its gradients.
    """
    live = live or (LiveTensors() if cross_entropy.counts_as_gpu else HeapTensors())
    copied = copies.of if copies is not None else {}
    with live:
        for tensor in (*model.parameters(), *model.buffers(), *(copies.tensors() if copies is not None else ())):
            live.add(tensor)
        optimizer = adamw(parameter_groups(model.named_parameters(), weight_decay=0.1), lr=0.0)
        for parameter in model.parameters():
            if parameter.requires_grad:
                copy = copied.get(id(parameter))
                parameter.grad = torch.zeros_like(parameter) if copy is None else copy.gradient
        optimizer.step()
        states = live.now
        optimizer.zero_grad()
        before, live.peak = live.now, 0
        # Of recomputed blocks little of the graph remains, so that their holes merge.
        with nullcontext() if getattr(model, "activation_checkpointing", False) else live.recording():
            loss = loss_of()
        kept = live.now - before
        loss.backward(torch.tensor(1.0))
        if n_micro_batches > 1:
            loss_of().backward(torch.tensor(1.0))
        optimizer.step()
    return StepMemory(states, kept, live.peak)


def in_four_bits(model: CausalLM) -> None:
    """Give the frozen linear layers of the blocks the sizes of NF4 with quantised scales, inside `counting`."""
    for layer in model.blocks.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.requires_grad:
            shape, n = layer.weight.shape, layer.weight.numel()
            n_bytes = n // 2 + n // 64 + n // 64 // 256 * 4  # two weights a byte, a scale for 64, one of scales for 256
            layer.weight = nn.Parameter(torch.empty(n_bytes, dtype=torch.uint8), requires_grad=False)
            four_bits: Any = layer
            four_bits.__class__, four_bits.shape = _FourBitLinear, shape


class _FourBitLinear(nn.Linear):
    shape: torch.Size

    def forward(self, x: Tensor) -> Tensor:
        return _FourBits.apply(x, self.shape)


class _FourBits(torch.autograd.Function):
    """A product with a weight that is read from 4 bits each time; its input is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: torch.Size) -> Tensor:  # type: ignore[override]
        ctx.shape = shape
        return x @ torch.empty(shape, dtype=torch.bfloat16).t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad @ torch.empty(ctx.shape, dtype=grad.dtype), None


def _measured(config: GPTConfig, typical: Sequence[Batch], device: torch.device, bf16: bool) -> float:
    """Seconds of a step, by the straight line through models of two depths.

    The measured step is that of a run: its optimizer, and on a CPU its copies of the weights.
    """
    seconds = {}
    keep_freed_memory()
    for depth in {min(depth, config.n_layers) for depth in DEPTHS}:
        step, model = AcceleratedStep(), GPT(replace(config, n_layers=depth)).to(device).train()
        step.attach(model)
        optimizer = adamw(parameter_groups(model.named_parameters(), weight_decay=0.1), lr=0.0)
        step.start(optimizer, FitFacts("bf16-mixed" if bf16 else "32-true", n_micro_batches=1, is_wrapped=False))
        train_step(step, optimizer, typical[0].to(device), bf16)  # the first step allocates the optimizer's state
        fastest = [min(train_step(step, optimizer, batch.to(device), bf16) for _ in range(2)) for batch in typical]
        seconds[depth] = sum(fastest) / len(fastest)
    return _at_depth(seconds, config.n_layers)


def _at_depth(measured: dict[int, float], n_layers: int) -> float:
    """The straight line through one or two measurements, never falling."""
    (low, first), (high, second) = min(measured.items()), max(measured.items())
    per_block = max(0.0, (second - first) / (high - low)) if high > low else 0.0
    return first + (n_layers - low) * per_block


def batch_loss(step: StepAccelerator, batch: Batch, bf16: bool) -> Tensor:
    """The loss of a step, under autocast where it is in bf16."""
    with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=bf16):
        return step.loss(batch, batch.loss_weights)


def train_step(
    step: StepAccelerator, optimizer: torch.optim.Optimizer, batch: Batch, bf16: bool, n_micro_batches: int = 1
) -> float:
    """Take one optimizer step with clipped gradients, of the same batch so many times, and return its seconds."""
    start = time.perf_counter()
    optimizer.zero_grad()
    for _ in range(n_micro_batches):
        batch_loss(step, batch, bf16).backward()
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
        loss = batch_loss(step, batch, bf16)
    del loss
    return sum(kept.values())
