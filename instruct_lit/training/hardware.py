"""What the machine at hand can do: precision, memory, allocator."""

from __future__ import annotations

import ctypes
import math
import resource
import sys
import time
from pathlib import Path

import torch


def default_precision(accelerator: str) -> str:
    """`bf16-mixed` where the device multiplies matrices in bf16 at speed, otherwise `32-true`."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if not hasattr(torch.cpu, "_is_avx512_bf16_supported"):
        return "32-true"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"


def matrix_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of this device's matrix products in the precision of a run, the best of a few of a middling size."""
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32
    n = 8192 if device.type == "cuda" else 1024
    a, b = torch.ones(n, n, device=device, dtype=dtype), torch.ones(n, n, device=device, dtype=dtype)
    best = math.inf
    for _ in range(6):
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def keep_freed_memory() -> None:
    """Tell glibc to keep the memory of activations between steps instead of returning it to the kernel.

    Otherwise every step pays page faults for them anew. What is larger than 32 MiB, glibc's limit for this, is
    returned: it would leave holes, and the largest gradients are kept by `instruct_lit.training.working`. Elsewhere
    than on glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        mallopt(mmap_threshold, 2**25)
        mallopt(trim_threshold, 2**31 - 1)


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
            unit = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
