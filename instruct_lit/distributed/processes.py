"""The processes of one run: the first one prepares the data, prints, and reports what ended the others."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lightning import Trainer

from instruct_lit.distributed.compat_lightning import forget_child_processes
from instruct_lit.errors import TrainingError


@contextmanager
def first_rank_first(trainer: Trainer) -> Iterator[None]:
    """Run the block (downloads, encoding) on the first process of each machine, then on the others.

    Where Lightning starts the other processes itself, it does so after the block.
    """
    is_first, strategy = trainer.local_rank == 0, trainer.strategy
    if is_first:
        yield
    if trainer.world_size > 1:
        if strategy.launcher is None:  # torchrun or a cluster starts the processes
            strategy.setup_environment()
        else:
            strategy.launcher.launch(strategy.setup_environment)
        strategy.barrier("prepared")
    if not is_first:
        yield


def silence_other_ranks(trainer: Trainer) -> None:
    """Let only the first rank write to the standard output; all ranks write errors."""
    if not trainer.is_global_zero:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


@contextmanager
def explained_peers(trainer: Trainer) -> Iterator[None]:
    """Turn a connection that another process broke, and weights that DDP waits for, into a TrainingError.

    After a signal the launcher is detached from the ended processes.
    """
    try:
        yield
    except SystemExit:  # a signal
        forget_child_processes(trainer.strategy.launcher)
        raise
    except RuntimeError as error:
        if "parameters that were not used in producing the loss" in str(error):
            raise TrainingError(
                "trainer.strategy: DDP waits for gradients of trained weights, and the loss has none for some of this "
                "model; use trainer.strategy=ddp_find_unused_parameters_true"
            ) from error
        words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket Timeout", "NCCL")
        if trainer.world_size == 1 or not any(word in str(error) for word in words):
            raise
        reason = str(error).strip().splitlines()[0]
        raise TrainingError(
            f"another process of this job has ended ({reason:.120}); see its own error in the output, and resume with "
            "ckpt_path=last"
        ) from error
