"""The forward pass of a block of a model of transformers: for selected tokens, recomputed, and compiled.

The head is applied to supervised tokens, or to the last of each prompt, so behind the attention of the last block
nothing else is needed. The block's own code computes both parts, so this works for any order of its norms, sums and
matrices; `instruct_lit.hf.model` measures whether it is exact when a model is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from instruct_lit.core.model.causal import Compiler, best_device


class _AttentionReached(Exception):
    """Ends a block before its attention, whose arguments it has."""


class BlockForward:
    """Replaces the forward pass of a block.

    Attributes:
        compiler: Compiles the block's own code, which the attention interrupts.
        attention: The block's attention module, where selected tokens are computed alone after it: the block runs until
            it calls its attention, then for these tokens with what they attended as the result.
        index: Selects these tokens, counting through the flattened ones; all if None.
        recomputes: Whether activations are recomputed in the backward pass, in training.
        draws: Whether the block draws random numbers in training, so that the recomputation must restore their state,
            which takes time. The first forward pass finds it out.
    """

    def __init__(self, block: Any) -> None:
        self.block = block
        self.compiler: Compiler | None = None
        self.attention: Any = None
        self.index: Tensor | None = None
        self.recomputes = False
        self.draws: bool | None = None
        self._attended: Any = None

    @staticmethod
    def of(block: Any) -> BlockForward:
        """The one of a block, which has it from now on."""
        if not isinstance(vars(block).get("forward"), BlockForward):
            block.forward = BlockForward(block)
        return block.forward

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        # At the recomputation they have changed.
        run = partial(self._forward, self.compiler, self.index)
        if not (self.recomputes and self.block.training):
            return run(*inputs, **named)
        if self.draws is not None:
            return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=self.draws, **named)
        before, output = _random_states(), checkpoint(run, *inputs, use_reentrant=False, **named)
        changed = not all(map(torch.equal, before, _random_states()))
        self.draws = changed if changed or output[0].numel() else None  # for no token nothing is drawn
        return output

    def _forward(self, compiler: Compiler | None, index: Tensor | None, *inputs: Any, **named: Any) -> Any:
        run = _own_forward(self.block, compiler)
        if index is None:
            return run(*inputs, **named)
        x = inputs[0]

        def selected(states: Any) -> Any:
            if not isinstance(states, Tensor) or states.shape[:2] != x.shape[:2]:
                return states
            # In the dtype of x, in which a GPU then sums the gradients of a token.
            return states.to(x.dtype).flatten(0, -2).index_select(0, index)[None].to(states.dtype)

        attend = _own_forward(self.attention, compiler)
        self.attention.forward = partial(hidden_from_compiler(_attended) if compiler else _attended, self)
        try:
            args, kwargs = _inputs_of_attention(partial(run, *inputs, **named))
            attended = attend(*args, **kwargs)
            self._attended = tuple(map(selected, attended)) if isinstance(attended, tuple) else selected(attended)
            return run(*map(selected, inputs), **named)
        finally:
            del self.attention.forward
            self._attended = None


def _own_forward(module: Any, compiler: Compiler | None) -> Callable[..., Any]:
    forward = type(module).forward
    return partial(compiler(forward) if compiler else forward, module)


def _attended(forward: BlockForward, *inputs: Any, **named: Any) -> Any:
    """In place of the attention of a block: its result for selected tokens, or the end of the block before it."""
    if forward._attended is None:
        raise _AttentionReached(inputs, named)
    return forward._attended


def _inputs_of_attention(run: Callable[[], Any]) -> tuple[Any, ...]:
    try:
        run()
    except _AttentionReached as reached:
        return reached.args
    raise AssertionError("the last block does not attend")


@cache
def hidden_from_compiler(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which interrupts compiled code that calls it."""
    return torch.compiler.disable(function)


def _random_states() -> list[Tensor]:
    """The states of torch's random numbers on the host and on the GPU."""
    gpu = best_device()
    return [torch.get_rng_state(), *([] if gpu.type == "cpu" else [torch.get_device_module(gpu).get_rng_state()])]
