"""The precision and the speed of this machine's matrix products, and the allocator."""

import ctypes
import math
import sys
import time

import torch
from torch import nn

from instruct_lit.accel.compat_torch import has_bf16_vectors
from instruct_lit.core.model.causal import CausalLM, best_device

KEPT_BYTES = 2**25  # size up to which freed memory is kept; the highest limit of glibc


def default_precision(accelerator: str) -> str:
    """`bf16-mixed` if the device multiplies matrices in bf16 at speed, otherwise `32-true`, also on Apple's GPUs."""
    gpu = "mps" if accelerator == "mps" else best_device().type
    if accelerator == "cpu" or gpu not in ("cuda", "mps"):  # Lightning trains on no others
        return "bf16-mixed" if has_bf16_vectors() else "32-true"
    return "bf16-mixed" if gpu == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def keep_freed_memory() -> None:
    """Let glibc keep the memory of activations between steps instead of returning it to the kernel.

    Otherwise every step pays page faults for them again. Blocks larger than `KEPT_BYTES` are returned, since they would
    leave holes; `instruct_lit.accel.weight_copies` keeps the largest. Without glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        mallopt(mmap_threshold, KEPT_BYTES)
        mallopt(trim_threshold, 2**31 - 1)


def matrix_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of this device's matrix products in the precision of a run: the best of six of medium size."""
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32
    n = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))  # products of ones would be faster on a GPU
    best = math.inf
    for _ in range(6):
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # synchronises
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def needed_flops(model: CausalLM, n_tokens: int, n_supervised: int) -> int:
    """FLOPs of the matrix products that tokens need, forward and backward.

    Every token goes once through the blocks, every supervised one through the head. Frozen weights need no gradient,
    and below the lowest trained layer there is no backward pass.
    """
    in_blocks = {id(p) for p in model.blocks.parameters()}
    backward = any(p.requires_grad and id(p) not in in_blocks for p in model.parameters())
    per_token = 0
    for block in model.blocks:
        trained = _size(block, trained=True)
        backward = backward or trained > 0
        per_token += 6 * trained + (4 if backward else 2) * _size(block, trained=False)
    head = (6 if any(p.requires_grad for p in model.head_parameters) else 4) * model.head_weight.numel()
    return per_token * n_tokens + head * n_supervised


def _size(module: nn.Module, trained: bool) -> int:
    parameters = (p for p in module.parameters() if p.requires_grad == trained)
    return sum(math.prod(getattr(p, "quant_state", p).shape) for p in parameters)  # bitsandbytes packs those of 4 bits
