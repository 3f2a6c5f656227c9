"""Attention as matrix products with its gradients written out: on a CPU the fastest for training on short sequences.

There the backward pass of torch's fused kernel takes two to five times its forward pass, in bf16 most of all
(`python -m benchmarks.attention`). Written out, queries, keys and values are laid out once for both passes, and the
gradients that several groups of queries contribute to the same keys are accumulated in place. The attention weights of
few keys are saved for the backward pass, those of many are recomputed there, so memory grows linearly with the tokens.

Shapes: P problems side by side (heads, or rows times heads), N tokens, D the width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from instruct_lit.accel.attention_groups import Group, document_groups, padded_for, row_groups
from instruct_lit.accel.compat_torch import softmax_backward
from instruct_lit.core.model.attention import CausalRows, PackedDocuments, repeat_kv

MAX_KEYS = 2048  # up to which products are faster
MAX_ROW_KEYS = 512  # for padded rows, where they are faster in bf16 alone
MAX_SAVED_KEYS = 256  # up to which attention weights are saved


def attend_rows(layout: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor | None:
    """The kernel of `CausalRows`, all `(…, T, H, D)`."""
    if not isinstance(layout, CausalRows) or not suits_rows(q.transpose(-3, -2)):
        return None
    q, k, v = (x.transpose(-3, -2) for x in (q, *repeat_kv(q, k, v)))  # (B, H, T, D)
    queries, keys, values = (x.flatten(0, -3) for x in (q, k, v))
    out = attend(queries, keys, values, row_groups(q.shape[-2], q), dropout)
    return out.view(q.shape).transpose(-3, -2)


def attend_documents(layout: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor | None:
    """The kernel of `PackedDocuments`, all `(N, H, D)`; where products do not pay, torch's kernel attends in groups.

    A group under a mask that hides other documents costs less than gathering short documents into rows.
    """
    if not isinstance(layout, PackedDocuments):
        return None
    if "groups" not in layout.kernel_state:
        layout.kernel_state["groups"] = document_groups(layout.lengths, layout.prefix_length, q)
    groups: list[Group] = layout.kernel_state["groups"]
    q, k, v = (x.transpose(0, 1) for x in (q, *repeat_kv(q, k, v)))  # (H, N, D)
    if suits(q, max(group.bias.shape[1] for group in groups)):
        return attend(q, k, v, groups, dropout).transpose(0, 1)
    outputs = []
    q, k, v = (padded_for(x, groups) for x in (q, k, v))
    for group in groups:
        queries, keys, values = (x.unsqueeze(0) for x in (group.queries_of(q), group.keys_of(k), group.keys_of(v)))
        out = F.scaled_dot_product_attention(queries, keys, values, group.bias, dropout_p=dropout)[0]
        outputs.append(out[:, : group.end - group.start])
    return torch.cat(outputs, 1).transpose(0, 1)


def suits(q: Tensor, n_keys: int) -> bool:
    """Whether products are faster for flat queries `q` that see at most `n_keys` keys."""
    on_cpu = q.device.type == "cpu" and q.dtype in (torch.float32, torch.bfloat16)
    return on_cpu and torch.is_grad_enabled() and n_keys <= MAX_KEYS


def suits_rows(q: Tensor) -> bool:
    """Whether products are faster for causal rows `(…, T, D)`, whose many heads together exceed the cache sooner."""
    return q.dtype == torch.bfloat16 and q.shape[-2] <= MAX_ROW_KEYS and suits(q, q.shape[-2])


def attend(q: Tensor, k: Tensor, v: Tensor, groups: Sequence[Group], dropout: float) -> Tensor:
    """softmax(q·kᵀ/√D + bias)·v for the queries of all groups, which together are all tokens. All `(P, N, D)`."""
    with torch.autocast(q.device.type, enabled=False):
        return _Attend.apply(q, k, v, groups, dropout)


class _Attend(torch.autograd.Function):
    """Saves for each group its queries, keys and values, the weights of few keys, and the dropout factors."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, groups: Sequence[Group], dropout: float
    ) -> Tensor:
        out, saved = torch.empty_like(q, memory_format=torch.contiguous_format), []
        q, k, v = (padded_for(x, groups) for x in (q, k, v))
        for group in groups:
            queries, keys, values = group.queries_of(q), group.keys_of(k), group.keys_of(v)
            weights = _weights(queries, keys, group.bias)
            factor = F.dropout(torch.ones_like(weights), dropout) if dropout else None
            group.write_queries(out, torch.bmm(weights if factor is None else weights * factor, values))
            saved += [queries, keys, values, weights if keys.shape[1] <= MAX_SAVED_KEYS else None, factor]
        ctx.save_for_backward(*saved)
        ctx.groups = groups
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        n_heads, n_tokens, width = grad.shape
        total = grad.new_zeros(3, n_heads, max(group.n_reached for group in ctx.groups), width)
        grad = grad.contiguous()
        saved = ctx.saved_tensors
        for n, group in enumerate(ctx.groups):
            queries, keys, values, weights, factor = saved[5 * n : 5 * n + 5]
            if weights is None:
                weights = _weights(queries, keys, group.bias)
            grad_out = group.gradient_of(grad)
            grad_weights = torch.bmm(grad_out, values.transpose(1, 2))
            dropped = weights
            if factor is not None:
                grad_weights, dropped = grad_weights * factor, weights * factor
            grad_scores = softmax_backward(grad_weights, weights)
            group.write_queries(total[0], _scaled_product(grad_scores, keys))
            group.add_to_keys(total[1], _scaled_product(grad_scores.transpose(1, 2), queries))
            group.add_to_keys(total[2], torch.bmm(dropped.transpose(1, 2), grad_out))
        return *total[:, :, :n_tokens], None, None


def _weights(queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    return torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=queries.shape[-1] ** -0.5).softmax(-1)


def _scaled_product(grad_scores: Tensor, x: Tensor) -> Tensor:
    """The matrix product divided by √D, as the scores are scaled."""
    return torch.baddbmm(x.new_zeros(()), grad_scores, x, beta=0, alpha=x.shape[-1] ** -0.5)
