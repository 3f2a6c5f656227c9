"""What training and generation need of a language model, whoever wrote it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from instruct_lit.core.model.attention import AttentionLayout

Function = TypeVar("Function", bound=Callable[..., Any])


@cache
def compiled_form(function: Function) -> Function:
    """A function of tensors (and modules) compiled by `torch.compile`, for tensors of any number of tokens."""
    compiled: Any = torch.compile(function, dynamic=True)
    return compiled


def selected(x: Tensor, index: Tensor) -> Tensor:
    """Of `(…, C)` the vectors `(M, C)` at the places `index` `(M,)` of the flattened other axes."""
    return x.flatten(0, -2).index_select(0, index)


class Shape(Protocol):
    """The sizes of a model that others ask for; `n_heads` are the heads of keys and values."""

    @property
    def n_vocab(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def d_head(self) -> int: ...


class CausalLM(nn.Module):
    """A causal language model: hidden states of token ids, and the matrix that turns them into logits.

    The loss runs the head on supervised positions alone and generation on last positions alone, so a model never gives
    logits itself: the logits of a state h are `head_weight` · h.
    """

    config: Any  # a Shape
    blocks: nn.ModuleList  # one layer after the other
    embedding_noise: float = 0.0  # half the width of the uniform noise on token embeddings in training
    compiled: bool = False  # in training, what is between products runs as kernels made for it
    no_layouts: str | None = None  # why the model takes rows only, no other attention layout

    @property
    @abstractmethod
    def head_weight(self) -> Tensor:
        """The output projection `(V, C)`."""

    @abstractmethod
    def hidden_states(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        layout: AttentionLayout | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """The last hidden states `(…, C)` of `input_ids` `(…)`; without a layout every row is one causal sequence.

        With `index` `(M,)`, which points into the flattened tokens, the states `(M, C)` there, and none but those.
        """

    def noised(self, embeddings: Tensor) -> Tensor:
        """The token embeddings with the noise of training (NEFTune, Jain et al. 2023)."""
        if not self.training or self.embedding_noise == 0:
            return embeddings
        return embeddings + torch.empty_like(embeddings).uniform_(-self.embedding_noise, self.embedding_noise)

    @property
    def n_parameters(self) -> int:
        """Number of parameters, a tied head counted once."""
        return sum(p.numel() for p in self.parameters())

    @property
    @abstractmethod
    def head_parameters(self) -> list[nn.Parameter]:
        """What `head_weight` is made of."""

    @property
    def end_parameters(self) -> list[nn.Parameter]:
        """Parameters outside the blocks: embeddings, head, final norm."""
        inside = {id(p) for p in self.blocks.parameters()}
        return [p for p in self.parameters() if id(p) not in inside]

    @property
    @abstractmethod
    def final_norm(self) -> nn.Module:
        """The normalisation between the last block and the head."""
