"""The masked cross-entropy of `core.training.loss` with its gradients computed in the forward pass.

The gradient of the logits, softmax - one-hot, overwrites the logits of each chunk, so that they are computed once: in
blocks that stay in a CPU's cache, or at once on a GPU, whose vocabulary is padded.
"""

import math
from typing import Any

import torch
from torch import Tensor

from instruct_lit.accel.kernel_heap import product
from instruct_lit.accel.weight_copies import WeightCopy
from instruct_lit.core.model.causal import CHUNK, Compiler

BLOCK = 8  # positions whose softmax a CPU computes at once, so that its passes over memory stay in the cache
GPU_CHUNK = 4096  # positions of a GPU's products, fewer and larger ones
GPU_LOGITS = 4096 * 50304  # of a chunk at most, 10 bytes each in bf16: 2.1 GB
counts_as_gpu = False  # of tensors without values, in the count of `accel.estimate`
GPU_MULTIPLE = 64  # to which a GPU's vocabulary is padded: products of unaligned rows are several times slower


def summed_cross_entropy(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    weights: Tensor,
    copy: WeightCopy | None = None,
    compiler: Compiler | None = None,
    dft: bool = False,
    cap: float | None = None,
) -> Tensor:
    """Return Σ weights · -log p(target), a float32 scalar with gradients for `hidden` and `head_weight`.

    No supervised position gives 0 with zero gradients. The result may not be scaled: factors belong into the weights.

    Args:
        hidden: `(M, C)`, the states at the supervised positions.
        head_weight: `(V, C)`.
        targets: `(M,)`.
        weights: `(M,)`.
        copy: Low-precision copy of the head, used by the products; the head's gradient goes into its buffer.
        compiler: Compiles the softmax and its gradient on a GPU.
        dft, cap: As in `core.training.loss`.
    """
    return _SummedCrossEntropy.apply(hidden, head_weight, targets, weights, copy, compiler, dft, cap)


class _SummedCrossEntropy(torch.autograd.Function):
    """Loss and gradients, chunk by chunk in the forward pass."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        head_weight: Tensor,
        targets: Tensor,
        weights: Tensor,
        copy: WeightCopy | None,
        compiler: Compiler | None,
        dft: bool,
        cap: float | None,
    ) -> Tensor:
        device_type, n_vocab = hidden.device.type, len(head_weight)
        dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else hidden.dtype
        chunk, to_gradient = CHUNK, _to_gradient_in_blocks
        if _at_once(hidden):
            chunk = min(GPU_CHUNK, max(128, GPU_LOGITS // n_vocab // 128 * 128))
            to_gradient = _to_gradient if compiler is None else compiler(_to_gradient)
        total = torch.zeros((), device=hidden.device)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = None
        with torch.autocast(device_type, enabled=False):
            weight = _padded_head(head_weight, dtype) if copy is None else copy.weight
            for start in range(0, len(hidden), chunk):
                rows = slice(start, start + chunk)
                h = hidden[rows].to(weight.dtype)
                space = None if copy is None else copy.scratch.take("logits", (len(h), len(weight)), weight.dtype)
                logits = product(torch.mm, h, weight.t(), out=space)  # (m, V)
                logits[:, n_vocab:] = -math.inf
                total += to_gradient(logits, targets[rows], weights[rows], dft, cap)
                if grad_hidden is not None:
                    grad_hidden[rows] = product(torch.mm, logits, weight).to(hidden.dtype)
                if needs_weight and copy is not None:
                    copy.collect(logits, h)
                elif needs_weight:
                    part = torch.mm(logits.t(), h)[:n_vocab]
                    grad_weight = part.to(head_weight.dtype) if grad_weight is None else grad_weight.add_(part)
                    del part
                del logits  # before those of the next chunk
        if needs_weight and grad_weight is None and copy is None:
            grad_weight = torch.zeros_like(head_weight)
        ctx.gradients = (grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (grad_hidden, grad_weight), ctx.gradients = ctx.gradients, None
        # A pass over (V, C) for nothing; the buffer of a copy may hold more than this gradient. A GPU would wait.
        assert not grad_output.is_cpu or abs(grad_output.item() - 1.0) < 1e-6, "scale the weights of the loss instead"
        return grad_hidden, grad_weight, None, None, None, None, None, None


def _at_once(like: Tensor) -> bool:
    """Whether the softmax of a whole chunk is computed at once: where memory is fast and calls are slow."""
    return like.is_cuda or counts_as_gpu


def _padded_head(head_weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The head in the precision of its products, on a GPU padded with zero rows to a multiple of `GPU_MULTIPLE`."""
    n_vocab, width = head_weight.shape
    n_more = -n_vocab % GPU_MULTIPLE if _at_once(head_weight) else 0
    if not n_more:
        return head_weight.to(dtype)
    weight = head_weight.new_empty((n_vocab + n_more, width), dtype=dtype)
    weight[:n_vocab], weight[n_vocab:] = head_weight, 0.0
    return weight


def _to_gradient(
    logits: Tensor, targets: Tensor, weights: Tensor, dft: bool = False, cap: float | None = None
) -> Tensor:
    """Overwrite the logits `(m, V)` with their gradient, weight · (softmax - one-hot), and return the summed loss.

    The arithmetic is in fp32, in as few passes over memory as torch's operations allow.
    """
    targets, weights = targets[:, None], weights[:, None]
    values = logits
    if cap is not None:
        bounded = (logits.float() / cap).tanh()
        values = (bounded * cap).masked_fill(logits == -math.inf, -math.inf)  # the padding of the vocabulary
    log_p = torch.log_softmax(values, 1, dtype=torch.float32)
    at_target = log_p.gather(1, targets)
    weights = weights * at_target.exp() if dft else weights
    torch.mul(log_p.exp_(), weights, out=logits)
    logits.scatter_(1, targets, (at_target.expm1() * weights).to(logits.dtype))
    if cap is not None:
        logits.mul_(1 - bounded.square())
    return -(at_target * weights).sum()


def _to_gradient_in_blocks(
    logits: Tensor, targets: Tensor, weights: Tensor, dft: bool = False, cap: float | None = None
) -> Tensor:
    """`_to_gradient` block by block, in memory that stays in a CPU's cache."""
    total = torch.zeros((), device=logits.device)
    block = torch.empty(min(BLOCK, len(logits)), logits.shape[1], device=logits.device)
    for start in range(0, len(logits), BLOCK):
        rows = slice(start, start + BLOCK)
        own, target, weight = logits[rows], targets[rows, None], weights[rows, None]
        values = block[: len(own)].copy_(own)
        if cap is not None:
            slope = 1 - values.div_(cap).tanh_().square()
            values.mul_(cap)
        highest = (own if cap is None else values).amax(1, keepdim=True).float()
        at_target = values.gather(1, target)
        denominator = values.sub_(highest).exp_().sum(1, keepdim=True)
        weight = weight * (at_target - highest).exp() / denominator if dft else weight
        total += ((denominator.log() + highest - at_target) * weight).sum()
        values.mul_(weight / denominator).scatter_add_(1, target, -weight)
        own.copy_(values if cap is None else values.mul_(slope))
    return total
