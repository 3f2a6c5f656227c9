"""What several processes of one run agree on: who goes first, who answers what, who speaks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from lightning import Trainer

Item = TypeVar("Item")


@contextmanager
def first_rank_first(trainer: Trainer) -> Iterator[None]:
    """What is inside (downloads, encoding) is done by the first process of each machine; the others wait for it.

    Where Lightning starts the other processes itself, it does so when the first one is through.
    """
    if trainer.world_size == 1:
        yield
    elif trainer.local_rank == 0:
        yield
        _connect(trainer)
        trainer.strategy.barrier("prepared")
    else:
        _connect(trainer)
        trainer.strategy.barrier("prepared")
        yield


def _connect(trainer: Trainer) -> None:
    strategy = trainer.strategy
    if strategy.launcher is None:  # somebody else starts the processes
        strategy.setup_environment()
    else:
        strategy.launcher.launch(strategy.setup_environment)


def silence_others(trainer: Trainer) -> None:
    """Let only the first rank write to the standard output; errors of all ranks are seen."""
    if not trainer.is_global_zero:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def share_of(trainer: Trainer | None, items: Sequence[Item]) -> Sequence[Item]:
    """The items that this rank works on: each is some rank's, and no rank has more than one above another."""
    return items if trainer is None else items[trainer.global_rank :: trainer.world_size]


def gathered(trainer: Trainer | None, mine: list[Item]) -> list[Item]:
    """What all ranks made of their shares, on every rank, in the order of the items."""
    if trainer is None or trainer.world_size == 1:
        return mine
    shares: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(shares, mine)
    n = sum(len(share) for share in shares)
    return [shares[i % len(shares)][i // len(shares)] for i in range(n)]


def sum_over_ranks(trainer: Trainer, counts: Sequence[int]) -> list[int]:
    """Each count summed over all ranks; free on one."""
    if trainer.world_size == 1:
        return list(counts)
    device = trainer.strategy.root_device
    total = torch.tensor(counts, dtype=torch.int64, device=device)
    torch.distributed.all_reduce(total)
    return total.tolist()


def detach_child_processes(trainer: Trainer) -> None:
    """Forget the processes that Lightning ended after a signal, so that its watch over them does not end this one."""
    processes = getattr(trainer.strategy.launcher, "procs", None)
    if processes is not None:
        processes.clear()
