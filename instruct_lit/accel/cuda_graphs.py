"""CUDA graphs: forward and backward pass of a micro-batch as one call of the driver.

A step of a small batch has about a thousand kernels, and a CPU needs longer to launch them one by one than a GPU to
compute them. A graph launches all at once, but for tensors of fixed sizes at fixed addresses. So a batch is padded to
one of few shapes, with tokens that no other token attends to and targets of weight 0, and copied to the inputs of the
graph of its shape. All graphs share their memory, gradients included, so these are valid until the next replay.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from instruct_lit.accel.attention_varlen import VarlenDocuments
from instruct_lit.accel.compat_torch import add_all, borrowed, copy_all, waits_for_gpu
from instruct_lit.core.data.batching import Batch
from instruct_lit.core.model.attention import AttentionLayout
from instruct_lit.errors import InstructLitError, TrainingError

MAX_GRAPHS = 64  # recorded shapes; batches of other shapes run kernel by kernel
ROOM = 2.5  # free bytes needed per byte of a step's tensors: a graph keeps its own beside all others
FINENESS = 16  # shapes between a size and its double
SMALLEST_STEP = 32
MORE_TOKENS, MORE_TARGETS = 1.1, 1.25  # factors up to which a batch is padded to a shape that another batch had
LONGEST_PADDING = 128  # tokens of a document of padding: a block of the attention kernel
Loss = Callable[[Tensor, Tensor, AttentionLayout | None, Tensor, Tensor, Tensor], Tensor]


class StepGraphs:
    """Computes losses and gradients of micro-batches, by a graph if a batch of about its shape was seen before.

    The first batch of a shape runs kernel by kernel, which also loads the kernels; the second that can be padded to it
    is recorded. When a parameter has moved in memory, all graphs are recorded again. When memory is scarce, large
    batches run kernel by kernel, with a warning. Each replay draws new random numbers from torch's default generator of
    the GPU, as the step would kernel by kernel. Raises TrainingError if a step cannot be recorded; torch's allocator is
    then unusable.

    Args:
        loss_of: Receives input ids, positions, layout, loss index, targets and weights as `Batch` has them and returns
            a scalar, in bf16 autocast; it must neither synchronise nor depend on a host's value that changes, and set
            the state of random numbers to one of the same step only, as activation checkpointing does.
        adds: Whether the gradients of several micro-batches add up.
    """

    def __init__(self, loss_of: Loss, parameters: Iterable[nn.Parameter], adds: bool) -> None:
        self.loss_of, self.adds = loss_of, adds
        self.parameters = [p for p in parameters if p.requires_grad]
        self._anchor = torch.zeros((), device=self.parameters[0].device, requires_grad=True)
        self._stream, self._before = torch.cuda.Stream(), torch.cuda.current_stream()
        self._graphs: dict[_Shape, _Graph | None] = {}
        self._forget()
        self._waits: bool | None = None  # whether the model waits for the GPU; None: not known yet

    def begin(self) -> None:
        """Use another stream in this thread until `end`.

        The default stream cannot be recorded, and autograd remembers the stream of a parameter's first use.
        """
        self._before = torch.cuda.current_stream()
        self._stream.wait_stream(self._before)
        torch.cuda.set_stream(self._stream)

    def end(self) -> None:
        """Return to the previous stream and give back the memory of the graphs."""
        self._forget()
        self._before.wait_stream(self._stream)
        torch.cuda.set_stream(self._before)

    def _forget(self) -> None:
        for graph in filter(None, self._graphs.values()):  # with the graphs the memory of their gradients goes
            for parameter, gradient in zip(self.parameters, graph.gradients, strict=True):
                parameter.grad = None if parameter.grad is gradient else parameter.grad
        self._graphs = {}
        self._places = [p.data_ptr() for p in self.parameters]
        self._pool = torch.cuda.graph_pool_handle()
        self._largest = 0  # tokens of the largest recorded batch
        self._full = False  # whether larger ones stay unrecorded

    def loss(self, batch: Batch, weights: Tensor) -> Tensor:
        """The batch's loss, whose backward pass sets or adds to the parameters' gradients.

        The loss may not be scaled afterwards: factors belong into the `weights` `(M,)` of its targets.
        """
        if self._places != [p.data_ptr() for p in self.parameters]:
            self._forget()
        own = _shape_of_batch(batch)
        shape = min((seen for seen in self._graphs if seen.fits(own)), default=None)
        inputs = _padded(batch, weights, shape)
        if shape is None:
            if len(self._graphs) < MAX_GRAPHS:
                self._graphs[own] = None  # seen once
            return self.loss_of(*inputs.arguments())
        graph = self._graphs[shape]
        if graph is None:
            if not self._has_room(inputs.tensors[0].numel()) or self._model_waits(inputs):
                return self.loss_of(*inputs.arguments())
            graph = self._graphs[shape] = self._record(inputs)
        graph.inputs.take(inputs)
        graph.graph.replay()
        return _Replayed.apply(self._anchor, graph, self)

    def _model_waits(self, inputs: _Inputs) -> bool:
        """Whether the model waits for the GPU within a step, as GPT-2 does not, and a model that routes tokens may.

        Found out once, with a batch whose kernels are loaded, and without an effect on later random numbers; a warning
        says that nothing is recorded.
        """
        if self._waits is None:
            device = self._anchor.device
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                self._waits = waits_for_gpu(lambda: self._computed(inputs))
            if self._waits:
                text = "cuda_graphs: the model waits for the GPU within a step, so none is recorded"
                warnings.warn(text, stacklevel=2)
        return self._waits

    def _has_room(self, n_tokens: int) -> bool:
        """Whether a batch of this size may be recorded: its tensors occupy memory that nothing else can use."""
        if n_tokens <= self._largest or self._full:
            return n_tokens <= self._largest
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        of_step = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
        self._full = free < ROOM * of_step
        if self._full:
            warnings.warn(
                f"cuda_graphs: a step takes {of_step / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; batches of "
                f"{n_tokens:,} tokens and more run without a graph, slower but with the same numbers",
                stacklevel=2,
            )
        else:
            self._largest = n_tokens
        return not self._full

    def _record(self, inputs: _Inputs) -> _Graph:
        inputs, graph = inputs.copied(), torch.cuda.CUDAGraph()
        refusal = "cuda_graphs=true: a step cannot be recorded ({}); use cuda_graphs=false"
        with recording(graph, self._pool, TrainingError, refusal, torch.cuda.current_stream()):
            loss, gradients = self._computed(inputs)
            gradients = _laid_out(gradients, self.parameters)
        # Not kept: where they lie, the activations of the next recorded graph may lie.
        return _Graph(graph, inputs, loss, [None if g is None else borrowed(g) for g in gradients])

    def _computed(self, inputs: _Inputs) -> tuple[Tensor, Sequence[Tensor | None]]:
        loss = self.loss_of(*inputs.arguments())
        return loss.detach(), torch.autograd.grad(loss, self.parameters, allow_unused=True)

    def add_gradients(self, graph: _Graph) -> None:
        """Set or add the gradients of the graph, the last that was replayed, to those of the parameters."""
        sums, added = [], []
        for parameter, gradient in zip(self.parameters, graph.gradients, strict=True):
            if gradient is None:
                continue
            if parameter.grad is None:
                parameter.grad = gradient.clone() if self.adds else gradient
            else:
                sums.append(parameter.grad)
                added.append(gradient)
        if sums:
            add_all(sums, added)


@contextmanager
def recording(
    graph: torch.cuda.CUDAGraph, pool: Any, kind: type[InstructLitError], refusal: str, stream: Any = None
) -> Iterator[None]:
    """Record what runs inside. Raises an error of this kind, `refusal` with the reason, where that is impossible."""
    enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    try:
        with (
            torch.cuda.graph(graph, pool, stream, "thread_local"),
            # Without a cache: a cast of this step may not be used by another, nor the other way round.
            torch.autocast("cuda", dtype, enabled, cache_enabled=False),
        ):
            yield
    except torch.OutOfMemoryError:
        raise  # explained where the batch size is known
    except RuntimeError as error:
        raise kind(refusal.format(str(error).partition("\n")[0][:160])) from error


class _Replayed(torch.autograd.Function):
    """The loss of a replay; the replay has computed the gradients."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, graph: _Graph, graphs: StepGraphs) -> Tensor:  # type: ignore[override]
        ctx.graph, ctx.graphs = graph, graphs
        return graph.loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:  # type: ignore[override]
        ctx.graphs.add_gradients(ctx.graph)
        return None, None, None


class _Shape(NamedTuple):
    """The sizes that a batch is padded to, those of a graph."""

    n_tokens: int  # of a row, or of packed documents together
    n_targets: int
    longest: int  # upper bound of the lengths of documents; 0 for rows
    fixed: tuple[int, ...]  # what no padding changes: rows, or documents and the length of their prefix

    def fits(self, other: _Shape) -> bool:
        """Whether a batch of the other shape can be padded to this one, at little cost."""
        sizes = (other.n_tokens, self.n_tokens, MORE_TOKENS), (other.n_targets, self.n_targets, MORE_TARGETS)
        near = all(needed <= own <= factor * needed for needed, own, factor in sizes)
        return near and self.fixed == other.fixed and other.longest <= self.longest


def _laid_out(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients, each in memory of its own with the strides of its parameter, as fused optimizers require."""
    found: list[Tensor | None] = []
    storages: set[int] = set()
    for gradient, parameter in zip(gradients, parameters, strict=True):
        if gradient is not None:
            storage = gradient.untyped_storage().data_ptr()
            if gradient.stride() != parameter.stride() or storage in storages:
                gradient = torch.empty_like(parameter).copy_(gradient)
            storages.add(storage)
        found.append(gradient)
    return found


@dataclass
class _Inputs:
    """A batch padded to a shape: the inputs of a graph."""

    shape: _Shape
    tensors: tuple[Tensor, ...]  # input ids, positions, loss index, targets, weights
    layout: VarlenDocuments | None

    def arguments(self) -> tuple[Tensor, Tensor, AttentionLayout | None, Tensor, Tensor, Tensor]:
        ids, positions, index, targets, weights = self.tensors
        return ids, positions, self.layout, index, targets, weights

    def copied(self) -> _Inputs:
        layout = None if self.layout is None else self.layout.at(self.layout.flat.clone())
        return _Inputs(self.shape, tuple(x.clone() for x in self.tensors), layout)

    def take(self, other: _Inputs) -> None:
        copy_all(self.tensors, other.tensors)
        if self.layout is not None and other.layout is not None:
            self.layout.flat.copy_(other.layout.flat)


@dataclass
class _Graph:
    graph: torch.cuda.CUDAGraph
    inputs: _Inputs
    loss: Tensor
    gradients: list[Tensor | None]  # valid from its replay to the next of any graph


def _shape_of_batch(batch: Batch) -> _Shape:
    """The sizes that a batch is rounded up to."""
    size, n_targets = _shape_of(batch.input_ids.shape[-1]), _shape_of(len(batch.targets))
    lengths = batch.document_lengths
    if lengths is None:
        return _Shape(size, n_targets, 0, tuple(batch.input_ids.shape[:-1]))
    longest = max(LONGEST_PADDING, 2 ** (max(lengths) - 1).bit_length())
    return _Shape(size, n_targets, longest, (len(lengths), batch.prefix_length))


def _padded(batch: Batch, weights: Tensor, shape: _Shape | None = None) -> _Inputs:
    """The batch with padding tokens up to the size of a shape, by default its own, and targets of weight 0."""
    shape = shape or _shape_of_batch(batch)
    ids, positions, index = batch.input_ids, batch.position_ids, batch.loss_index
    n_more, more = shape.n_tokens - ids.shape[-1], shape.n_targets - len(batch.targets)
    layout = None
    if batch.document_lengths is None:
        index = index + index.div(ids.shape[-1], rounding_mode="floor") * n_more  # rows are longer now
    else:
        padding = _documents_of_padding(n_more, shape.n_tokens)
        layout = VarlenDocuments(batch.document_lengths, batch.prefix_length, ids.device, padding, shape.longest)
    pad = nn.functional.pad
    tensors = [pad(ids, (0, n_more)), pad(positions, (0, n_more))]
    tensors += [pad(x, (0, more)) for x in (index, batch.targets, weights)]
    return _Inputs(shape, tuple(tensors), layout)


def _documents_of_padding(n_tokens: int, size: int) -> list[int]:
    """Lengths of the documents of padding in a batch of this size; always as many, the last ones may be empty."""
    most = size - size / MORE_TOKENS + _step_of(size)
    n_documents = math.ceil(most / LONGEST_PADDING)
    return [max(0, min(LONGEST_PADDING, n_tokens - n * LONGEST_PADDING)) for n in range(n_documents)]


def _shape_of(n: int) -> int:
    """The size that `n` is rounded up to."""
    step = _step_of(n)
    return max(1, -(-n // step)) * step


def _step_of(n: int) -> int:
    return max(SMALLEST_STEP, 2 ** max(0, n - 1).bit_length() // (2 * FINENESS))
