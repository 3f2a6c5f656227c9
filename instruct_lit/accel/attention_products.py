"""Attention as matrix products with its gradients written out: on a CPU the fastest for training on short sequences.

There the backward pass of torch's fused kernel takes two to five times its forward pass, in bf16 most of all
(`python -m benchmarks.attention`). Written out, queries, keys and values are laid out once for both passes, and the
gradients that several groups of queries contribute to the same keys are accumulated in place. The attention weights of
few keys are saved for the backward pass, those of many are recomputed there, so memory grows linearly with the tokens.

Shapes: B rows, N tokens, P heads of keys, G query heads for each, D the width of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from instruct_lit.accel.attention_groups import Group, contiguous_rows, document_groups, n_rows_for, row_groups
from instruct_lit.accel.compat_torch import softmax_backward
from instruct_lit.accel.kernel_heap import product
from instruct_lit.core.model.attention import CausalRows, PackedDocuments

MAX_KEYS = 2048  # up to which products are faster
MAX_ROW_KEYS = 512  # for padded rows, where they are faster in bf16 alone
MAX_SAVED_KEYS = 256  # up to which attention weights are saved


def attend_rows(
    layout: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float, window: int | None = None
) -> Tensor | None:
    """The kernel of `CausalRows`, all `(…, T, H, D)`; heads of keys and values may be fewer."""
    if not isinstance(layout, CausalRows) or not suits_rows(q.transpose(-3, -2)):
        return None
    groups = row_groups(q.shape[-3], q.shape[-2] // k.shape[-2], q, window)
    queries, keys, values = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
    return attend(queries, keys, values, groups, dropout).view(q.shape)


def attend_documents(
    layout: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float, window: int | None = None
) -> Tensor | None:
    """The kernel of `PackedDocuments`, all `(N, H, D)`; where products do not pay, torch's kernel attends in groups.

    A group under a mask that hides other documents costs less than gathering short documents into rows.
    """
    if not isinstance(layout, PackedDocuments):
        return None
    n_shared = q.shape[1] // k.shape[1]
    if window is not None and window >= layout.prefix_length + max(layout.lengths):
        window = None
    if (key := f"groups {n_shared} {window}") not in layout.kernel_state:
        layout.kernel_state[key] = document_groups(layout.lengths, layout.prefix_length, n_shared, q, window)
    groups: list[Group] = layout.kernel_state[key]
    q, k, v = q[None], k[None], v[None]
    if suits(q, max(group.bias.shape[1] for group in groups)):
        return attend(q, k, v, groups, dropout)[0]
    outputs, queries = [], _by_head(q, k.shape[2])
    k, v = _keys_for(k, groups), _keys_for(v, groups)
    for group in groups:
        own, keys, values = (part[None] for part in (group.queries_of(queries), group.keys_of(k), group.keys_of(v)))
        out = F.scaled_dot_product_attention(own, keys, values, group.bias, dropout)[0]  # (P, queries·G, D)
        outputs.append(out.unflatten(1, (group.n_queries, -1))[:, : group.end - group.start])
    return torch.cat(outputs, 1).transpose(0, 1).flatten(1, 2)


def suits(q: Tensor, n_keys: int) -> bool:
    """Whether products are faster for flat queries `q` that see at most `n_keys` keys."""
    on_cpu = q.device.type == "cpu" and q.dtype in (torch.float32, torch.bfloat16)
    return on_cpu and torch.is_grad_enabled() and n_keys <= MAX_KEYS


def suits_rows(q: Tensor) -> bool:
    """Whether products are faster for causal rows `(…, T, D)`, whose many heads together exceed the cache sooner."""
    return q.dtype == torch.bfloat16 and q.shape[-2] <= MAX_ROW_KEYS and suits(q, q.shape[-2])


def attend(q: Tensor, k: Tensor, v: Tensor, groups: Sequence[Group], dropout: float) -> Tensor:
    """softmax(q·kᵀ/√D + bias)·v for the queries of all groups, which together are all tokens.

    `q` and the result are `(B, N, P·G, D)`, `k` and `v` `(B, N, P, D)`.
    """
    with torch.autocast(q.device.type, enabled=False):
        return _Attend.apply(q, k, v, groups, dropout)


def _by_head(x: Tensor, n_heads: int) -> Tensor:
    """A view `(B, P, N, G, D)` of `(B, N, P·G, D)`."""
    return x.unflatten(2, (n_heads, -1)).transpose(1, 2)


def _keys_for(x: Tensor, groups: Sequence[Group]) -> Tensor:
    """Keys or values `(B, N, P, D)` as `(B, P, N, D)` for `Group.keys_of`."""
    return contiguous_rows(x.transpose(1, 2), n_rows_for(x.shape[1], groups))


class _Attend(torch.autograd.Function):
    """Saves for each group its queries, keys and values, the weights of few keys, and the dropout factors."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, groups: Sequence[Group], dropout: float
    ) -> Tensor:
        out, saved = torch.empty_like(q, memory_format=torch.contiguous_format), []
        ctx.shape_of_keys, ctx.groups = k.shape, groups
        q, places = _by_head(q, k.shape[2]), _by_head(out, k.shape[2])
        k, v = _keys_for(k, groups), _keys_for(v, groups)
        for group in groups:
            queries, keys, values = group.queries_of(q), group.keys_of(k), group.keys_of(v)
            weights = _weights(queries, keys, group.bias)
            factor = F.dropout(torch.ones_like(weights), dropout) if dropout else None
            group.write_queries(places, product(torch.bmm, weights if factor is None else weights * factor, values))
            saved += [queries, keys, values, weights if keys.shape[1] <= MAX_SAVED_KEYS else None, factor]
        ctx.save_for_backward(*saved)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        n_rows, n_tokens, n_heads, width = ctx.shape_of_keys
        of_queries = torch.empty_like(grad, memory_format=torch.contiguous_format)
        grad, places = _by_head(grad, n_heads), _by_head(of_queries, n_heads)
        n_reached = n_rows_for(n_tokens, ctx.groups)
        of_keys, of_values = grad.new_zeros(2, n_rows, n_reached, n_heads, width).transpose(2, 3)
        saved = ctx.saved_tensors
        for n, group in enumerate(ctx.groups):
            queries, keys, values, weights, factor = saved[5 * n : 5 * n + 5]
            if weights is None:
                weights = _weights(queries, keys, group.bias)
            grad_out = group.queries_of(grad)
            grad_weights = product(torch.bmm, grad_out, values.transpose(1, 2))
            dropped = weights
            if factor is not None:
                grad_weights, dropped = grad_weights * factor, weights * factor
            grad_scores = softmax_backward(grad_weights, weights)
            group.write_queries(places, _scaled_product(grad_scores, keys))
            group.add_to_keys(of_keys, _scaled_product(grad_scores.transpose(1, 2), queries))
            group.add_to_keys(of_values, product(torch.bmm, dropped.transpose(1, 2), grad_out))
        return of_queries, *(x[:, :, :n_tokens].transpose(1, 2) for x in (of_keys, of_values)), None, None


def _weights(queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    scale = queries.shape[-1] ** -0.5
    return product(torch.baddbmm, bias, queries, keys.transpose(1, 2), alpha=scale).softmax(-1)


def _scaled_product(grad_scores: Tensor, x: Tensor) -> Tensor:
    """The matrix product divided by √D, as the scores are scaled."""
    return product(torch.baddbmm, x.new_zeros(()), grad_scores, x, beta=0, alpha=x.shape[-1] ** -0.5)
