"""What ends a training run: a loss that is no number, and a device without memory left, each with what to do."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from instruct_lit.errors import TrainingError

if TYPE_CHECKING:
    from instruct_lit.accel.hardware import PeakMemory
    from instruct_lit.core.training.module import InstructionTuner

STATES_BYTES = 16  # of a trained parameter: weight, gradient and AdamW's two moments in fp32


class FiniteLosses:
    """Looks at the loss of every step: at once on a CPU, where it is free, and every `every` steps on a GPU.

    Raises TrainingError with the step and its examples when a loss is infinite or no number. On a CPU that is before
    the step changes a weight.
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self._waiting: list[tuple[int, list[Tensor], Tensor]] = []

    def add(self, step: int, example_ids: list[Tensor], loss: Tensor, last_good: Callable[[], str]) -> None:
        """Note the mean loss of a step over the examples of its micro-batches; `last_good` completes the message."""
        self._waiting.append((step, example_ids, loss))
        if loss.device.type == "cpu" or len(self._waiting) >= self.every:
            self.check(last_good)

    def check(self, last_good: Callable[[], str]) -> None:
        """Look at all that wait."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        losses = torch.stack([loss for _, _, loss in waiting]).tolist()
        for (step, example_ids, _), loss in zip(waiting, losses, strict=True):
            if not math.isfinite(loss):
                examples = ", ".join(str(i) for i in torch.cat(example_ids).tolist())
                place = f"at step {step}, on examples {examples} of the data"
                raise TrainingError(not_finite("train/loss", loss, place, last_good()))


def not_finite(metric: str, value: float, place: str, last_good: str) -> str:
    """What to tell of a loss that is no number."""
    advice = "lower optimizer.lr, or raise trainer.precision to 32-true"
    return f"{metric} is {value} {place}; {advice}; {last_good}"


@contextmanager
def explained_memory(tuner: InstructionTuner, memory: PeakMemory, batch_size: int, accumulate: int) -> Iterator[None]:
    """Turn a refusal of memory by device or system into a TrainingError: what to lower, and by how much."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        states = STATES_BYTES * sum(p.numel() for p in tuner.parameters() if p.requires_grad)
        states += sum(p.numel() * p.element_size() for p in tuner.parameters() if not p.requires_grad)
        if tuner.device.type == "cuda":
            total = torch.cuda.get_device_properties(tuner.device).total_memory
        else:
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        raise TrainingError(advice(total, states, memory.read(), batch_size, accumulate)) from error


@contextmanager
def explained_peers(world_size: int) -> Iterator[None]:
    """Turn a connection that broke because another process of the job died into a TrainingError that says so."""
    try:
        yield
    except RuntimeError as error:
        words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket Timeout", "NCCL")
        if world_size == 1 or not any(word in str(error) for word in words):
            raise
        reason = str(error).strip().splitlines()[0]
        raise TrainingError(
            "another process of this job has ended, its own error stands in the output; go on with ckpt_path=last "
            f"({reason})"
        ) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that device or system refused memory; on a CPU torch and its libraries say it in words."""
    words = ("DefaultCPUAllocator", "std::bad_alloc", "could not create a memory", "Cannot allocate memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


def advice(total: int, states: int, peak: int, batch_size: int, accumulate: int) -> str:
    """What to lower after `peak` bytes of `total` were in use, of which weights, gradients and moments are `states`."""
    start = f"out of memory: {peak / 1e9:.1f} of {total / 1e9:.1f} GB were in use, the weights' state takes "
    start += f"{states / 1e9:.1f} GB"
    if states > 0.9 * total:
        return f"{start}; a smaller batch cannot help: take a smaller model, or adapter=lora, which trains few weights"
    if batch_size == 1:
        return f"{start}; data.batch_size is 1: lower data.max_length, or set model.activation_checkpointing=true"
    room = max(0.0, total - states) / max(1, peak - states)
    smaller = max(1, int(batch_size * min(0.5, room)))
    factor = -(-batch_size // smaller)
    return (
        f"{start}; the same optimizer step needs less with data.batch_size={smaller} "
        f"trainer.accumulate_grad_batches={accumulate * factor}, and model.activation_checkpointing=true saves more"
    )
