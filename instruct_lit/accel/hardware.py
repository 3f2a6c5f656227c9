"""What the machine at hand can do: precision, memory, allocator."""

from __future__ import annotations

import ctypes
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from instruct_lit.core.model.device import has_gpu

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

KEPT_BYTES = 2**25  # up to which freed memory is kept; glibc takes no higher limit


def default_precision(accelerator: str) -> str:
    """`bf16-mixed` where the device multiplies matrices in bf16 at speed, otherwise `32-true`."""
    if accelerator != "cpu" and has_gpu():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if not hasattr(torch.cpu, "_is_avx512_bf16_supported"):
        return "32-true"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"


def matrix_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of this device's matrix products in the precision of a run, the best of a few of a middling size."""
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))  # a GPU multiplies ones faster than numbers
    best = math.inf
    for _ in range(6):
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def keep_freed_memory() -> None:
    """Tell glibc to keep the memory of activations between steps instead of returning it to the kernel.

    Otherwise every step pays page faults for them anew. What is larger than `KEPT_BYTES` is returned: it would leave
    holes, and the largest is kept by `instruct_lit.accel.weight_copies`. Elsewhere than on glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        mallopt(mmap_threshold, KEPT_BYTES)
        mallopt(trim_threshold, 2**31 - 1)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; on a CPU (Linux) also within a container's limit. None where it is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
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


@contextmanager
def limited_memory(device: torch.device, n_bytes: int | None) -> Iterator[None]:
    """On a CPU let this process take no more than `n_bytes` on top of what it has: what goes beyond is refused.

    Without it Linux grants more than there is, and ends the process when that is used. None limits nothing.
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


class PeakMemory:
    """Peak memory in bytes since its making: the GPU's allocations, or on a CPU the process's resident set."""

    def __init__(self, device_type: str) -> None:
        self.device_type = device_type
        if device_type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            try:
                Path("/proc/self/clear_refs").write_text("5")  # Linux: start the high-water mark anew
            except OSError:
                pass

    def read(self) -> int:
        if self.device_type == "cuda":
            return torch.cuda.max_memory_allocated()
        try:
            status = Path("/proc/self/status").read_text()
        except OSError:
            if resource is None:
                return 0
            unit = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
