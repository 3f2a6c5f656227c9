"""Memory of a device: peak, free, limited, and advice when it is exhausted."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import nn

from instruct_lit.errors import TrainingError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

STATES_BYTES = 16  # of a trained parameter: weight, gradient and AdamW's two moments in fp32


class PeakMemory:
    """Peak memory in bytes since construction: allocations of a GPU, or the resident set of the process.

    The latter is that of a CPU, and of Apple's GPUs, which share its memory and count no peak.
    """

    def __init__(self, device_type: str) -> None:
        self.gpu = torch.get_device_module(device_type) if _has_own_memory(device_type) else None
        if self.gpu is not None:
            self.gpu.reset_peak_memory_stats()
        else:
            with suppress(OSError):  # only Linux has it
                Path("/proc/self/clear_refs").write_text("5")  # reset the peak

    def read(self) -> int:
        """Bytes; 0 where the system does not report them (Windows)."""
        if self.gpu is not None:
            return self.gpu.max_memory_allocated()
        try:
            return _kilobytes("/proc/self/status", "VmHWM:") * 1024
        except OSError:
            if resource is None:
                return 0
            unit = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory(device: torch.device) -> int | None:
    """Free bytes of a device; on a CPU (Linux only) also within a container's limit. None where it is unknown."""
    if _has_own_memory(device.type):
        return torch.get_device_module(device).mem_get_info(device)[0]
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return None
    free = _kilobytes("/proc/meminfo", "MemAvailable:") * 1024
    try:  # version 2 of control groups; a root group has no such files
        group = Path("/sys/fs/cgroup" + Path("/proc/self/cgroup").read_text().split("::")[-1].strip())
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        droppable = int((group / "memory.stat").read_text().split("inactive_file")[1].split()[0])
    except (OSError, ValueError, IndexError):
        return free
    return min(free, limit - used + droppable)


def _has_own_memory(device_type: str) -> bool:
    return device_type not in ("cpu", "mps")


@contextmanager
def limited_memory(device: torch.device, n_bytes: int | None) -> Iterator[None]:
    """On a CPU (Linux only) limit this process to `n_bytes` more than it has; further allocations fail.

    Without a limit Linux grants more memory than exists and kills the process that uses it. None sets no limit.
    """
    if device.type != "cpu" or n_bytes is None or resource is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = n_bytes + _kilobytes("/proc/self/status", "VmData:") * 1024
    soft = limit if before[0] == resource.RLIM_INFINITY else min(limit, before[0])
    resource.setrlimit(resource.RLIMIT_DATA, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _kilobytes(path: str, key: str) -> int:
    return int(Path(path).read_text().split(key)[1].split()[0])


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that device or system refused memory; on a CPU torch reports it in words only."""
    words = ("DefaultCPUAllocator", "std::bad_alloc", "could not create a memory", "Cannot allocate memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


@contextmanager
def explained_memory(
    model: nn.Module, device: torch.device, memory: PeakMemory, batch_size: int, accumulate: int
) -> Iterator[None]:
    """Turn an error for lack of memory into a TrainingError: what to lower, and by how much."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        states = STATES_BYTES * sum(p.numel() for p in model.parameters() if p.requires_grad)
        states += sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
        raise TrainingError(advice(_total(device), states, memory.read(), batch_size, accumulate)) from error


def _total(device: torch.device) -> int:
    """Bytes of a device's memory; 0 where the system does not report them (Windows)."""
    if _has_own_memory(device.type):
        return torch.get_device_module(device).mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def advice(total: int, states: int, peak: int, batch_size: int, accumulate: int) -> str:
    """What to lower after `peak` bytes of `total` were in use, of which weights, gradients and moments are `states`."""
    start = f"out of memory: {peak / 1e9:.1f} of {total / 1e9:.1f} GB were in use, of which weights, gradients and "
    start += f"moments take {states / 1e9:.1f} GB"
    if states > 0.9 * total > 0:
        return f"{start}; a smaller batch cannot help: use a smaller model, or adapter=lora, which trains few weights"
    if batch_size == 1:
        return f"{start}; data.batch_size is 1: lower data.max_length, or set model.activation_checkpointing=true"
    room = max(0.0, total - states) / max(1, peak - states)
    smaller = max(1, int(batch_size * min(0.5, room)))
    factor = -(-batch_size // smaller)
    return (
        f"{start}; the same optimizer step needs less with data.batch_size={smaller} "
        f"trainer.accumulate_grad_batches={accumulate * factor}; model.activation_checkpointing=true saves more"
    )
