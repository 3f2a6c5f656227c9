"""The interface of a causal language model, as training and generation use it; its device.

Shapes: B rows, T tokens of a row, N tokens of a flat batch, M selected tokens, C hidden width, V vocabulary.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instruct_lit.core.model.attention import AttentionLayout

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]
CHUNK = 512  # positions whose logits exist at once: 512 · 50257 · 4 bytes = 98 MiB in fp32


class CausalLM(nn.Module):
    """A causal language model: hidden states of token ids, and the matrix that turns them into logits.

    States and logits are computed apart: the loss needs logits of supervised positions alone, generation of last ones.
    """

    config: Any  # n_vocab, context_length, and for each layer in kv_heads the heads of keys and values and their width
    blocks: nn.ModuleList  # the layers in order
    embedding_noise: float | Tensor | None = None  # half width of the uniform noise on token embeddings in training
    compiler: Compiler | None = None  # in training, compiles the functions between attention calls
    layout_length: float = math.inf  # longest text for which attention layouts are exact; causal rows always are
    no_layouts: str | None = None  # why longer texts need causal rows
    takes_rows: bool = True  # whether the layout `CausalRows` gives rows what they get without a layout
    logit_cap: float | None = None  # of `capped`
    base_dtype: torch.dtype = torch.float32  # of the weights that it was built from
    end_ids: frozenset[int] = frozenset()  # tokens that end an answer besides the tokenizer's end-of-text

    @property
    @abstractmethod
    def head_weight(self) -> Tensor:
        """The output projection `(V, C)`."""

    @property
    @abstractmethod
    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters that `head_weight` consists of."""

    @property
    @abstractmethod
    def final_norm(self) -> nn.Module:
        """The norm between the last block and the head."""

    @abstractmethod
    def hidden_states(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        layout: AttentionLayout | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """Return the normalised last hidden states, `(…, C)` for `input_ids` `(…)`, or with `index` `(M,)` `(M, C)`.

        Without `position_ids` positions count from 0; without a layout every row is one causal sequence. `index` counts
        through the flattened tokens and selects those whose states are returned.
        """

    def own_cache(self) -> Callable[[Sequence[Any]], Tensor] | None:
        """What gives the last states `(R, C)` of requests that grow, for texts longer than `layout_length`, if any."""
        return None

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits `(…, V)` of states `(…, C)`."""
        logits = F.linear(hidden, self.head_weight)
        return logits if self.logit_cap is None else capped(logits, self.logit_cap)

    def noised(self, embeddings: Tensor) -> Tensor:
        """Token embeddings, with uniform noise in training (NEFTune, Jain et al. 2023); the host reads no tensor."""
        width = self.embedding_noise if self.training else None
        if width is None:
            return embeddings
        draw = torch.empty_like(embeddings).uniform_
        return embeddings + (draw(-1, 1) * width if isinstance(width, Tensor) else draw(-width, width))

    @property
    def n_parameters(self) -> int:
        """Number of parameters; a tied head counts once."""
        return sum(p.numel() for p in self.parameters())


def capped(logits: Tensor, cap: float) -> Tensor:
    """cap · tanh(logits / cap), a soft bound, in fp32 (Gemma 2, Riviere et al. 2024)."""
    return (logits.float() / cap).tanh() * cap


@torch.no_grad()
def token_losses(model: CausalLM, hidden: Tensor, targets: Tensor) -> Tensor:
    """Return -log p(target) `(M,)` in float32 for states `(M, C)` and targets `(M,)`."""
    chunks = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    return torch.cat([F.cross_entropy(model.logits(h).float(), t, reduction="none") for h, t in chunks])


def best_device() -> torch.device:
    """The GPU if there is one, of whatever kind, otherwise the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def sum_dtype(device: torch.device) -> torch.dtype:
    """float64, in which long sums are exact; Apple's GPUs have float32 at most."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextmanager
def on_device(model: CausalLM, device: torch.device) -> Iterator[None]:
    """Move a model to a device of this type and back afterwards."""
    before = model.head_weight.device
    if before.type != device.type:
        model.to(device)
    try:
        yield
    finally:
        if before.type != device.type:
            model.to(before)
