"""Decoding on a GPU: several tokens in every row before the host looks at them, each step as one CUDA graph.

A step of the plain decoder launches hundreds of kernels one by one, copies the filled part of the cache, and waits for
its tokens. Here rows and places of the cache are rounded up to few sizes, the attention reads the cache in place and
masks what a row does not see, and tokens are chosen, penalised and ended on the device, with the functions
and the random numbers of `instruct_lit.core.generation.sampling`. So the texts are those of the plain decoder; rows
that ended in the meantime are cut where the host looks.

Shapes: R rows, T places of the cache, H heads of keys and values, D width of a head, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from instruct_lit.accel.compat_torch import waits_for_gpu
from instruct_lit.accel.cuda_graphs import recording
from instruct_lit.accel.forwards import ReplacedForwards
from instruct_lit.accel.rms_norm import rms_norms
from instruct_lit.core.generation.engine import WeightStore, logits_of
from instruct_lit.core.generation.request import Request
from instruct_lit.core.generation.sampling import SamplingSettings, drawn, draws_of, limits_of, nucleus, penalised
from instruct_lit.core.model.attention import KeyValueCache
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.errors import InstructLitError

MAX_STEPS = 16  # before the host looks at the tokens
FEW_ROWS, MAX_STEPS_OF_FEW = 4, 4  # of few rows it looks sooner: someone may be reading them as they come
FEWEST_PLACES = 64
ALIGNMENT = 16  # elements of a mask's row, so that the attention kernel needs no copy of it
MAX_GRAPHS = 64
FEWEST_STEPS = 4  # for which a graph is recorded, which takes about as long as two steps kernel by kernel


def decode_loop(model: CausalLM, weights: WeightStore | None, eot_id: int, cache: KeyValueCache) -> DeviceLoop | None:
    """The loop for a cache on a GPU; None on another device, where launching kernels one by one costs little.

    The hooks of a model in shards (FSDP) use streams and events of their own, so its steps are not recorded.
    """
    if cache.device.type != "cuda":
        return None
    from torch.distributed.fsdp import FSDPModule  # takes half a second

    is_sharded = any(isinstance(module, FSDPModule) for module in model.modules())
    return DeviceLoop(model, weights, eot_id, cache, with_graphs=not is_sharded)


@dataclass(frozen=True)
class _Shape:
    """What is fixed in a graph: the sizes, and what the choice of tokens needs."""

    n_rows: int
    n_places: int
    is_sampled: bool  # whether a row is not greedy
    is_cut: bool  # whether a row has top-k or top-p
    is_penalised: bool

    def fits(self, other: _Shape) -> bool:
        """Whether a graph of this shape can decode the other at less than twice its size."""
        sizes = (self.n_rows, other.n_rows), (self.n_places, other.n_places)
        same = replace(other, n_rows=self.n_rows, n_places=self.n_places) == self
        return same and all(needed <= own <= 2 * needed for own, needed in sizes)


class DeviceLoop:
    """Decodes the first rows of a cache (`instruct_lit.core.generation.engine.DecodeLoop`).

    The first step of a shape runs kernel by kernel, which also loads the kernels; then it is recorded. When a parameter
    has moved in memory, all shapes are recorded again. A model that waits for the GPU within a step, as one that routes
    tokens may, runs kernel by kernel, with a warning.

    Args:
        with_graphs: whether steps are recorded; otherwise the same operations run one by one, on any device.

    Raises: InstructLitError if a step cannot be recorded; torch's allocator is then unusable.
    """

    def __init__(
        self, model: CausalLM, weights: WeightStore | None, eot_id: int, cache: KeyValueCache, with_graphs: bool
    ) -> None:
        self.model, self.weights, self.eot_id, self.cache = model, weights, eot_id, cache
        self.with_graphs, self._norms = with_graphs, ReplacedForwards(rms_norms(model, training=False))
        self._graphs: dict[_Shape, torch.cuda.CUDAGraph] = {}
        self._addresses: list[int] = []  # of the parameters that the graphs read
        self._pool: Any = None  # of the memory that they share
        n_rows, device = cache.n_rows, cache.device
        self._step_number = torch.zeros(1, dtype=torch.long, device=device)
        self._tokens = torch.zeros(MAX_STEPS, n_rows, dtype=torch.long, device=device)
        # Of every row: the last token, which is not in the cache yet, its position, and how many may still follow it.
        self._rows = torch.zeros(3, n_rows, dtype=torch.long, device=device)
        self._draws = torch.zeros(MAX_STEPS, n_rows, dtype=torch.float64, device=device)
        self._limits = torch.ones(3, n_rows, 1, device=device)  # temperature, top-k, top-p
        self._penalties = torch.ones(n_rows, 1, device=device)
        self._is_greedy = torch.ones(n_rows, dtype=torch.bool, device=device)
        self._seen: Tensor | None = None  # (R, V) whether a token occurred, once a row has a repetition penalty

    def __call__(self, requests: Sequence[Request]) -> list[list[int]]:
        """Up to `MAX_STEPS` tokens for each request; those behind the end of a response have no meaning."""
        context_length = self.model.config.context_length
        n_left = [min(r.settings.max_new_tokens - len(r.ids), context_length - r.n_tokens) for r in requests]
        n_steps = min(MAX_STEPS if len(requests) > FEW_ROWS else MAX_STEPS_OF_FEW, max(n_left))
        n_places = max(r.n_tokens - 1 + min(n, n_steps) for r, n in zip(requests, n_left, strict=True))
        settings = [request.settings for request in requests]
        shape = _Shape(
            min(_power_of_two(len(requests)), self.cache.n_rows),
            min(max(FEWEST_PLACES, _power_of_two(n_places)), self.cache.n_tokens),
            any(not s.is_greedy for s in settings),
            any(not s.is_greedy and (s.top_k or s.top_p) for s in settings),
            any(s.repetition_penalty != 1 for s in settings),
        )
        rows = torch.tensor([[r.ids[-1] for r in requests], [r.n_tokens - 1 for r in requests], n_left])
        self._rows.zero_()[:, : len(requests)] = rows.to(self._rows.device)
        if shape.is_sampled:
            self._set_limits(requests, n_steps)
        if shape.is_penalised:
            self._set_penalties(requests)
        self._run(shape, n_steps)
        return self._tokens[:n_steps, : len(requests)].T.tolist()  # waits for the device

    def _set_limits(self, requests: Sequence[Request], n_steps: int) -> None:
        n, device = len(requests), self._draws.device
        greedy = [request.settings.is_greedy for request in requests]
        settings = [SamplingSettings(temperature=1) if is_greedy else request.settings
                    for request, is_greedy in zip(requests, greedy, strict=True)]  # fmt: skip
        limits = limits_of(settings, self.model.config.n_vocab, device)
        self._limits[: len(limits), :n] = torch.stack(limits)
        self._is_greedy[:n] = torch.tensor(greedy, device=device)
        draws = [draws_of(request.settings.seed, len(request.ids), n_steps) for request in requests]
        self._draws[:n_steps, :n] = torch.stack(draws, 1).to(device)

    def _set_penalties(self, requests: Sequence[Request]) -> None:
        device = self._penalties.device
        if self._seen is None:
            self._seen = torch.zeros(self.cache.n_rows, self.model.config.n_vocab, dtype=torch.bool, device=device)
        penalties = [[request.settings.repetition_penalty] for request in requests]
        self._penalties[: len(requests)] = torch.tensor(penalties, device=device)
        texts = [request.prompt_ids + request.ids for request in requests]
        places = torch.tensor([(row, token) for row, text in enumerate(texts) for token in text], device=device)
        self._seen.zero_()[places[:, 0], places[:, 1]] = True

    def _run(self, shape: _Shape, n_steps: int) -> None:
        """Make the steps, by a graph where one is recorded or can be."""
        self._step_number.zero_()
        graph = self._graph_for(shape) if self.with_graphs else None
        with self._norms:
            if graph is None and self.with_graphs and n_steps >= FEWEST_STEPS:
                self._first_step(shape)
                n_steps -= 1
                graph = self._recorded(shape) if self.with_graphs else None
            for _ in range(n_steps):
                self._step(shape) if graph is None else graph.replay()

    def _graph_for(self, shape: _Shape) -> torch.cuda.CUDAGraph | None:
        addresses = [parameter.data_ptr() for parameter in self.model.parameters()]
        if addresses != self._addresses or len(self._graphs) >= MAX_GRAPHS:
            self._graphs.clear()
            self._addresses, self._pool = addresses, torch.cuda.graph_pool_handle()
        fitting = [other for other in self._graphs if other.fits(shape)]
        return self._graphs[min(fitting, key=lambda s: s.n_rows * s.n_places)] if fitting else None

    def _first_step(self, shape: _Shape) -> None:
        """Make a step kernel by kernel, and find out whether it can be recorded."""
        if waits_for_gpu(lambda: self._step(shape)):
            self.with_graphs = False
            warnings.warn("generation: the model waits for the GPU within a step, so none is recorded", stacklevel=2)
            self._step(shape)  # once more: what a step changes for the next one, it changes at its end

    def _recorded(self, shape: _Shape) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        refusal = "generation: a step cannot be recorded ({}); use generation.cuda_graphs=false"
        with recording(graph, self._pool, InstructLitError, refusal):
            self._step(shape)
        self._graphs[shape] = graph
        return graph

    def _step(self, shape: _Shape) -> None:
        """Compute the last token of every row and choose the next.

        Nothing here may wait for the device or read from the host.
        """
        ids, positions, n_left = self._rows[:, : shape.n_rows]
        layout = DecodeInPlace(self.cache, positions, shape.n_places)
        hidden = self.model.hidden_states(ids[:, None], positions[:, None], layout)
        tokens = self._choose(logits_of(hidden[:, 0], self.model, self.weights), shape)
        self._tokens[:, : shape.n_rows].index_copy_(0, self._step_number, tokens[None])
        self._step_number += 1
        ids.copy_(tokens)
        n_left.copy_((n_left - 1).clamp_min(0).masked_fill(tokens == self.eot_id, 0))
        positions += n_left > 0  # a row that has ended stays where it is

    def _choose(self, logits: Tensor, shape: _Shape) -> Tensor:
        if not shape.is_sampled and not shape.is_penalised:
            return logits.max(-1).indices
        logits, n = logits.float(), shape.n_rows
        if shape.is_penalised:
            assert self._seen is not None
            logits = torch.where(self._seen[:n], penalised(logits, self._penalties[:n]), logits)
        tokens = logits.argmax(-1)
        if shape.is_sampled:
            probabilities = nucleus(logits, *self._limits[: 3 if shape.is_cut else 1, :n])
            draws = self._draws[:, :n].index_select(0, self._step_number).T
            tokens = torch.where(self._is_greedy[:n], tokens, drawn(probabilities, draws.contiguous()))
        if shape.is_penalised:
            assert self._seen is not None
            self._seen[:n].scatter_(1, tokens[:, None], True)
        return tokens


class DecodeInPlace:
    """An attention layout: one new token for each of the first rows of the cache, at `positions` `(R,)`.

    Keys and values are read from the first `n_places` of the cache, and a bias excludes those behind a row's end. Query
    heads that share a head of keys are a group of queries of it, so no keys are repeated.
    """

    def __init__(self, cache: KeyValueCache, positions: Tensor, n_places: int) -> None:
        self.cache, self.positions, self.n_places = cache, positions, n_places
        self.rows = torch.arange(len(positions), device=positions.device)
        aligned = -(-n_places // ALIGNMENT) * ALIGNMENT
        self.distance = positions[:, None] - torch.arange(aligned, device=positions.device)
        self._biases: dict[int, Tensor] = {}  # of windows

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float, window: int | None = None) -> Tensor:
        keys, values = self.cache.keys[layer][: len(self.rows)], self.cache.values[layer][: len(self.rows)]
        keys[self.rows, :, self.positions] = k[:, 0].to(keys.dtype)
        values[self.rows, :, self.positions] = v[:, 0].to(values.dtype)
        keys, values = (x[:, :, : self.n_places].to(q.dtype) for x in (keys, values))  # (R, H, T, D)
        window = min(window or self.n_places, self.n_places)
        if window not in self._biases:
            hidden = (self.distance < 0) | (self.distance >= window)
            bias = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device)
            self._biases[window] = bias.masked_fill_(hidden, -torch.inf)[:, None, None, : self.n_places]
        groups = q[:, 0].unflatten(1, (keys.shape[1], -1))  # (R, H, queries of a head, D)
        out = F.scaled_dot_product_attention(groups, keys, values, self._biases[window])
        return out.flatten(1, 2)[:, None]


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
