"""Answers of a model to the examples of a split."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from lightning import Trainer
from tqdm import tqdm

from instruct_lit.core.data.datamodule import InstructionData
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.responses import CachedAnswers, answer
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.causal import best_device, on_device
from instruct_lit.core.training.sharding import Sharding


def answer_split(
    engine: Engine,
    data: InstructionData,
    split: str,
    n_responses: int | None,
    settings: SamplingSettings,
    title: str,
    trainer: Trainer | None = None,
    sharding: Sharding | None = None,
    cached: CachedAnswers | None = None,
) -> list[dict[str, Any]]:
    """The answers to the first `n_responses` examples of a split (None: to all), a row for each, with a progress bar.

    Each rank of `trainer` answers its share on its device and gets all answers. `cached` is that of `responses.answer`.
    """
    store, indices = data.examples_of(split)
    examples = [store.to_answer(i) for i in share_of(trainer, indices[:n_responses].tolist())]
    device = best_device() if trainer is None else trainer.strategy.root_device
    with tqdm(total=len(examples), desc=title, unit="answer", dynamic_ncols=True, file=sys.stdout) as bar:
        with on_device(engine.model, device), (sharding or Sharding()).gathered(engine.model):
            rows = answer(engine, data.template, examples, settings, bar.update, cached)
        return gathered(trainer, rows)


def share_of(trainer: Trainer | None, items: Sequence[Any]) -> Sequence[Any]:
    """The items that this rank works on: each belongs to one rank, and the shares differ by at most one item."""
    return items if trainer is None else items[trainer.global_rank :: trainer.world_size]


def gathered(trainer: Trainer | None, share: list[Any]) -> list[Any]:
    """The results of all ranks for their shares, on every rank, in the order of the items."""
    if trainer is None or trainer.world_size == 1:
        return share
    shares: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(shares, share)
    return [shares[i % len(shares)][i // len(shares)] for i in range(sum(map(len, shares)))]
