"""The forward pass of a block of a model of transformers: for selected tokens, and with recomputed activations.

The head is applied to supervised tokens, or to the last of each prompt, so behind the attention of the last block
nothing else is needed. The block's own code computes both parts, so this works for any order of its norms, sums and
matrices; `instruct_lit.hf.model` measures whether it is exact when a model is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint


class _Attended(Exception):
    """Ends a block after its attention, whose output it has."""


def forward_selected(
    forward: Callable[..., Any], block: Any, attention: Any, x: Tensor, *inputs: Any, **named: Any
) -> Any:
    """The forward pass of a block, after its attention of the tokens alone that `layout` selects.

    The block runs twice, first until its attention has attended, then for the selected tokens with this as the result.
    """
    index = named["layout"][2] if named.get("layout") else None
    if index is None:
        return forward(block, x, *inputs, **named)

    def selected(states: Any) -> Any:
        if not isinstance(states, Tensor):
            return states
        # In the dtype of x, in which a GPU then sums the gradients of a token.
        return states.to(x.dtype).flatten(0, -2).index_select(0, index)[None].to(states.dtype)

    attend = attention.forward

    def stop(*inputs: Any, **named: Any) -> None:
        raise _Attended(attend(*inputs, **named))

    attention.forward = stop
    try:
        forward(block, x, *inputs, **named)
        raise AssertionError("the last block does not attend")
    except _Attended as done:
        (attended,) = done.args
    finally:
        del attention.forward
    attended = tuple(map(selected, attended)) if isinstance(attended, tuple) else selected(attended)
    attention.forward = lambda *inputs, **named: attended
    try:
        return forward(block, selected(x), *inputs, **named)
    finally:
        del attention.forward


def checkpointed(block: Any, forward: Any, *inputs: Any, **named: Any) -> Any:
    """The forward pass of a block, whose activations are recomputed in the backward pass."""
    if not block.training:
        return forward(*inputs, **named)
    return checkpoint(forward, *inputs, use_reentrant=False, **named)
