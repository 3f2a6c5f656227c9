"""Values of all processes of a run, through Lightning's strategy; free for one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from lightning import Trainer

Item = TypeVar("Item")


def sum_over_ranks(trainer: Trainer, values: Sequence[int] | torch.Tensor) -> Any:
    """Each value summed over all ranks: a list of counts, or a tensor."""
    if trainer.world_size == 1:
        return values
    if isinstance(values, torch.Tensor):
        return trainer.strategy.reduce(values, reduce_op="sum")
    counts = torch.tensor(values, dtype=torch.int64, device=trainer.strategy.root_device)
    return trainer.strategy.reduce(counts, reduce_op="sum").tolist()  # type: ignore[union-attr]


def share_of(trainer: Trainer | None, items: Sequence[Item]) -> Sequence[Item]:
    """The items that this rank works on: each belongs to one rank, and the shares differ by at most one item."""
    return items if trainer is None else items[trainer.global_rank :: trainer.world_size]


def gathered(trainer: Trainer | None, share: list[Item]) -> list[Item]:
    """The results of all ranks for their shares, on every rank, in the order of the items."""
    if trainer is None or trainer.world_size == 1:
        return share
    shares: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(shares, share)
    n = sum(len(share) for share in shares)
    return [shares[i % len(shares)][i // len(shares)] for i in range(n)]
