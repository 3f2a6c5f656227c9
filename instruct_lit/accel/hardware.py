"""The precision and the speed of this machine's matrix products, and the allocator."""

import ctypes
import math
import sys
import time
from itertools import takewhile

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
    # Of random numbers: products of ones would be faster on a GPU.
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = math.inf
    for _ in range(6):
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # synchronises
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def needed_flops(model: CausalLM, n_tokens: int, n_supervised: int) -> int:
    """FLOPs of the matrix products that tokens need, forward and backward.

    Every token goes once through the blocks, there through the experts that its router chooses, every supervised one
    through the head. Frozen weights need no gradient, and below the lowest trained layer there is no backward pass.
    """
    in_blocks, in_norm = ({id(p) for p in module.parameters()} for module in (model.blocks, model.final_norm))
    before_blocks = takewhile(lambda p: id(p) not in in_blocks, model.parameters())  # with a tied head
    backward = any(p.requires_grad and id(p) not in in_norm for p in before_blocks)
    n_chosen = getattr(model.config, "n_chosen_experts", None)
    per_token = 0
    for block in model.blocks:
        trained = _size(block, True, n_chosen)
        backward = backward or trained > 0
        per_token += 6 * trained + (4 if backward else 2) * _size(block, False, n_chosen)
    of_states = backward or any(p.requires_grad for p in model.final_norm.parameters())
    head = 2 + 2 * of_states + 2 * any(p.requires_grad for p in model.head_parameters)
    return per_token * n_tokens + head * model.head_weight.numel() * n_supervised


def _size(module: nn.Module, trained: bool, n_chosen_experts: int | None) -> int:
    """The weights that a token meets; those of all experts of a layer lie in one tensor with three axes."""
    # bitsandbytes packs weights of 4 bits.
    shapes = [getattr(p, "quant_state", p).shape for p in module.parameters() if p.requires_grad == trained]
    if n_chosen_experts is not None:
        shapes = [(min(n_chosen_experts, s[0]), *s[1:]) if len(s) == 3 else s for s in shapes]
    return sum(map(math.prod, shapes))
