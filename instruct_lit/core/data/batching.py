"""From encoded examples to batches: which examples a batch has, and how they lie in it.

`pad_shift_mask` is the textbook form (pad, shift by one, mask with -100) and the reference. Every layout yields the
same pairs of position and target, and so the same loss; they differ only in how many positions the model computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from instruct_lit.core.data.encode import EncodedExample
from instruct_lit.core.data.tokenizer import n_shared

IGNORE_INDEX = -100
Layout = Literal["padded", "packed"]
# By name: a function of the lengths in random order `(n,)` and the size of a batch, in examples or tokens, that returns
# the positions of every batch. `none` is built in: batches of neighbours. `datasets` adds `length` and `best_fit`.
GROUPINGS: dict[str, Callable[[np.ndarray, int], list[np.ndarray]]] = {}


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward pass and the pairs of position and next token that the loss is taken over.

    `input_ids` and `position_ids` are `(B, T)` rows, or `(N,)` documents one after the other behind `prefix_length`
    shared tokens; `document_lengths` is None for rows. The M supervised pairs: `loss_index` `(M,)` points into the
    flattened inputs, `targets` `(M,)` is the token that follows there, `loss_weights` `(M,)` its weight summed over
    the documents that share the pair (0 for padding), `is_response` `(M,)` whether the target belongs to a response.
    """

    example_ids: Tensor
    input_ids: Tensor
    position_ids: Tensor
    loss_index: Tensor
    targets: Tensor
    loss_weights: Tensor
    is_response: Tensor
    document_lengths: tuple[int, ...] | None
    prefix_length: int
    n_supervised: float  # sum of loss_weights, available without a device synchronisation
    n_tokens: int  # input tokens of the examples: no padding, each example counted whole
    n_response_bytes: float  # UTF-8 bytes of the response tokens among the targets

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """A copy with its tensors moved by `Tensor.to`, asynchronously from page-locked memory."""
        return self._map(lambda x: x.to(*args, **{"non_blocking": x.is_pinned(), **kwargs}))

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Any]) -> Batch:
        return replace(self, **{name: function(x) for name, x in vars(self).items() if isinstance(x, Tensor)})


def pad_shift_mask(
    examples: Sequence[EncodedExample], pad_id: int, pad_to: int | None = None, mask_prompt: bool = True
) -> tuple[Tensor, Tensor]:
    """Pad to the longest example (or to `pad_to` inputs), shift by one, and mask the unsupervised targets with -100.

    Returns `(B, T)` inputs and targets: the target at a position is the token after it. The end-of-text that closes an
    example is a target; the padding after it, though the same token, is not; neither, with `mask_prompt`, is any token
    of a prompt.
    """
    width = max(len(example.ids) for example in examples) - 1
    if pad_to is not None:
        assert width <= pad_to, f"an example has {width} inputs, pad_to is {pad_to}"
        width = pad_to
    inputs = torch.full((len(examples), width), pad_id)
    targets = torch.full((len(examples), width), IGNORE_INDEX)
    for row, example in enumerate(examples):
        ids, n_inputs = torch.from_numpy(example.ids), len(example.ids) - 1
        is_learnt = torch.from_numpy(supervised(example, mask_prompt) > 0)
        inputs[row, :n_inputs] = ids[:-1]
        targets[row, :n_inputs] = ids[1:].where(is_learnt[1:], IGNORE_INDEX)
    return inputs, targets


def supervised(example: EncodedExample, mask_prompt: bool, prompt_weight: float = 1.0) -> np.ndarray:
    """The weight of every token in the loss as a target `(T,)`, 0 where it is masked."""
    weights = np.where(example.is_response, 1.0, 0.0 if mask_prompt else prompt_weight)
    return weights if example.weights is None else weights * example.weights


def _total(weights: np.ndarray) -> float:
    total = float(weights.sum())
    return int(total) if total.is_integer() else total


@dataclass
class Collator:
    """Makes a batch of examples in one layout; the `collate_fn` of the data loaders.

    `padded` pads every document to the longest (or to `pad_to` inputs); `packed` pads nothing. With `shared_prefix`
    the longest common prefix of the batch's documents is stored once, at the start. `pad_to_multiple_of` rounds up the
    number of supervised pairs (with weight 0) and the positions of a packed batch (a document of padding), so that few
    shapes occur and kernels compiled for a shape are reused.
    """

    pad_id: int
    n_bytes_of: np.ndarray
    layout: Layout = "padded"
    shared_prefix: bool = False
    mask_prompt: bool = True
    pad_to: int | None = None
    pad_to_multiple_of: int = 1
    prompt_weight: float = 1.0  # of the tokens of prompts in the loss, unless they are masked

    def __call__(self, examples: Sequence[EncodedExample]) -> Batch:
        if not examples:  # a rank's part of the last global batch may be empty: one token, unsupervised
            examples = [EncodedExample(-1, np.full(2, self.pad_id), np.zeros(2, dtype=bool))]
            return Collator(self.pad_id, self.n_bytes_of, self.layout)(examples)
        as_rows = self.layout == "padded" and not self.shared_prefix
        inputs, pairs, weights = self._rows(examples) if as_rows else self._flat(examples)
        n_padding = -len(weights) % self.pad_to_multiple_of
        loss_index, targets, is_response = np.concatenate([pairs, np.zeros((3, n_padding), dtype=np.int64)], axis=1)
        weights = np.concatenate([weights, np.zeros(n_padding)])
        return Batch(
            **inputs,
            example_ids=torch.tensor([example.index for example in examples]),
            loss_index=torch.from_numpy(loss_index),
            targets=torch.from_numpy(targets),
            loss_weights=torch.from_numpy(weights).float(),
            is_response=torch.from_numpy(is_response).bool(),
            n_supervised=_total(weights),
            n_tokens=sum(len(example.ids) - 1 for example in examples),
            n_response_bytes=_total(self.n_bytes_of[targets] * weights * is_response),
        )

    def _rows(self, examples: Sequence[EncodedExample]) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
        """What the model reads; the pairs (position, target, whether of a response) `(3, M)`; their weights `(M,)`."""
        inputs, targets = pad_shift_mask(examples, self.pad_id, self.pad_to, self.mask_prompt)
        is_response, weights = np.zeros(targets.shape, dtype=bool), np.zeros(targets.shape)
        for row, example in enumerate(examples):
            is_response[row, : len(example.ids) - 1] = example.is_response[1:]
            weights[row, : len(example.ids) - 1] = supervised(example, self.mask_prompt, self.prompt_weight)[1:]
        flat = targets.flatten().numpy()
        where = (flat != IGNORE_INDEX).nonzero()[0]
        pairs = np.stack([where, flat[where], is_response.flatten()[where]])
        positions = torch.arange(inputs.shape[1]).repeat(len(inputs), 1)
        read = {"input_ids": inputs, "position_ids": positions, "document_lengths": None, "prefix_length": 0}
        return read, pairs, weights.flatten()[where]

    def _flat(self, examples: Sequence[EncodedExample]) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
        """The same for documents one after the other behind their common prefix."""
        n_prefix = n_shared([example.ids for example in examples], n_own=2) if self.shared_prefix else 0
        width = 0  # that documents are padded to
        if self.layout == "padded":
            width = self.pad_to or max(len(example.ids) - 1 for example in examples)
        ids, positions = [examples[0].ids[:n_prefix]], [np.arange(n_prefix)]
        pairs, weights, lengths = [], [], []
        start = n_prefix  # of the next document
        for example in examples:
            inputs, targets = example.ids[:-1], example.ids[1:]  # shifted by one
            padding = np.full(max(0, width - len(inputs)), self.pad_id)  # empty in a packed batch
            ids += [inputs[n_prefix:], padding]
            lengths.append(len(inputs) + len(padding) - n_prefix)
            positions.append(np.arange(n_prefix, n_prefix + lengths[-1]))
            # In place of -100: the positions whose target is supervised, and no others.
            where = supervised(example, self.mask_prompt)[1:].nonzero()[0]
            index = np.where(where < n_prefix, where, where - n_prefix + start)
            pairs.append(np.stack([index, targets[where], example.is_response[1:][where]]))
            weights.append(supervised(example, self.mask_prompt, self.prompt_weight)[1:][where])
            start += lengths[-1]
        n_padding = -start % self.pad_to_multiple_of if self.layout == "packed" else 0
        if n_padding:  # a document of padding
            ids.append(np.full(n_padding, self.pad_id))
            positions.append(np.zeros(n_padding, dtype=np.int64))
            lengths.append(n_padding)
        all_pairs, all_weights = np.concatenate(pairs, axis=1), np.concatenate(weights)
        if (all_pairs[0] < n_prefix).any():  # a shared pair is computed once, with the sum of its weights
            all_pairs, place = np.unique(all_pairs, axis=1, return_inverse=True)
            all_weights = np.bincount(place.ravel(), all_weights)
        read = {
            "input_ids": torch.from_numpy(np.concatenate(ids)),
            "position_ids": torch.from_numpy(np.concatenate(positions)),
            "document_lengths": tuple(lengths),
            "prefix_length": n_prefix,
        }
        return read, all_pairs, all_weights


@dataclass(eq=False)
class BatchSampler:
    """Yields lists of indices; the same (seed, epoch) always gives the same lists.

    `grouping` forms the batches, in random order (`GROUPINGS`), of `max_tokens` tokens where given instead of
    `batch_size` examples. Without shuffling the order is that of `indices`. Every example is seen exactly once.

    Over several ranks each global batch of `world_size` times that size is divided into parts, so that all ranks take
    the same number of steps; a part of the last one may be empty. In evaluation (`shuffle=False`) whole batches are
    distributed, at least one to each rank if there are enough examples.
    """

    indices: np.ndarray
    lengths: np.ndarray
    batch_size: int
    shuffle: bool = True
    seed: int = 0
    grouping: str = "none"
    max_tokens: int | None = None
    rank: int = 0
    world_size: int = 1
    epoch: int = 0
    n_skip: int = 0  # batches that the next iteration skips: they were seen before a resume
    _cached: tuple[int, list[list[int]]] = (-1, [])  # an epoch and its batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches()[self.n_skip :])

    def __len__(self) -> int:
        return len(self._batches())

    def drawn(self, random: np.random.Generator) -> np.ndarray:
        """The positions in `indices` that an epoch sees, here each once."""
        return np.arange(len(self.indices))

    def _batches(self) -> list[list[int]]:
        """This rank's batches of the epoch."""
        if self._cached[0] != self.epoch:
            batches = self._shuffled() if self.shuffle else self._in_order()
            self._cached = self.epoch, [self.indices[batch].tolist() for batch in batches]
        return self._cached[1]

    def _shuffled(self) -> list[np.ndarray]:
        """This rank's part of every global batch, as positions in `indices`."""
        random = np.random.default_rng((self.seed, self.epoch))
        order = self.drawn(random)
        order = order[random.permutation(len(order))]
        size = (self.max_tokens or self.batch_size) * self.world_size
        if self.grouping == "none":
            batches = [order[i : i + size] for i in range(0, len(order), size)]
        else:
            groups = GROUPINGS[self.grouping](self.lengths[order], size)
            batches = [order[groups[i]] for i in random.permutation(len(groups))]
        return [batch[self.rank :: self.world_size] for batch in batches]

    def _in_order(self) -> list[np.ndarray]:
        """Every `world_size`-th batch; batches are smaller where a rank would have none."""
        order = np.arange(len(self.indices))
        size = min(self.batch_size, max(1, len(order) // self.world_size))
        return [order[i : i + size] for i in range(self.rank * size, len(order), self.world_size * size)]


class ResumableLoader(DataLoader):
    """A DataLoader whose state is its position, so that a resumed run continues with the next batch."""

    n_yielded = 0
    _n_skip = 0
    batch_sampler: BatchSampler

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.n_yielded, self._n_skip = self._n_skip, 0
        self.batch_sampler.n_skip = self.n_yielded
        for batch in super().__iter__():
            self.n_yielded += 1
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch, which decides the order of the batches."""
        self.batch_sampler.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """Epoch, and how many of its batches were yielded."""
        return {"epoch": self.batch_sampler.epoch, "n_yielded": self.n_yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue there with the next iteration."""
        at_end = state["n_yielded"] >= len(self)  # after its last batch an epoch is followed by the next
        self.set_epoch(state["epoch"] + at_end)
        self._n_skip = 0 if at_end else state["n_yielded"]
