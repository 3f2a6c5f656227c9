"""What the machine at hand can do: precision, memory, allocator."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

import torch


def default_precision(accelerator: str) -> str:
    """`bf16-mixed` where the device multiplies matrices in bf16 at speed, otherwise `32-true`."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if not hasattr(torch.cpu, "_is_avx512_bf16_supported"):
        return "32-true"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"


def keep_freed_memory() -> None:
    """Tell glibc to keep the memory of large tensors between steps instead of returning it to the kernel.

    Otherwise every step pays page faults for its gradients and activations anew. Elsewhere than on glibc it does
    nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
        mallopt(mmap_max, 0)
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
