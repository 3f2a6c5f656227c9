"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners") in one file.

A decoder-only transformer with learned positions, pre-layer-norm blocks, GELU in the tanh form, and an output head
tied to the token embedding. The same code runs on rows `(B, T)` and on packed documents `(N,)`; which token attends to
which is up to the layout (`instruct_lit.core.model.attention`).

Shapes: B rows, T tokens of a row, N tokens of a flat batch, M selected tokens, C = d_model, H heads, D = C / H,
V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from instruct_lit.core.model.attention import AttentionLayout, CausalRows
from instruct_lit.core.model.causal import CausalLM, Compiler

INIT_STD = 0.02


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT-2; the defaults are those of the 124M model."""

    n_vocab: int = 50257
    context_length: int = 1024
    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        assert self.d_model % self.n_heads == 0, f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}"

    @property
    def kv_heads(self) -> list[tuple[int, int]]:
        """Number of heads of keys and values, and their width, for each layer."""
        return [(self.n_heads, self.d_model // self.n_heads)] * self.n_layers


class MLP(nn.Module):
    """Two linear layers with GELU between them, four times as wide inside."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.fc = nn.Linear(d_model, 4 * d_model)
        self.proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.gelu(self.fc(x), approximate="tanh"))


class Block(nn.Module):
    """One layer: attention, then the MLP, each with a layer norm before it and added to the residual stream.

    Before and after the attention are two functions of tensors alone, which can be compiled (`CausalLM.compiler`).
    """

    def __init__(self, config: GPTConfig, layer: int, dropout: float) -> None:
        super().__init__()
        d, self.heads = config.d_model, config.kv_heads[layer]
        self.layer = layer
        self.ln_1 = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(d, 3 * d), "proj": nn.Linear(d, d)})
        self.ln_2 = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.mlp = MLP(d)
        self.dropout = nn.Dropout(dropout)

    def before_attention(self, x: Tensor) -> Tensor:
        """Return queries, keys and values `(…, 3C)` of the residual stream `(…, C)`."""
        return self.attn["qkv"](self.ln_1(x))

    def after_attention(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the residual stream after the layer, given that before it and the attended values, all `(…, C)`."""
        x = x + self.dropout(self.attn["proj"](y))
        return x + self.dropout(self.mlp(self.ln_2(x)))

    def forward(
        self, x: Tensor, layout: AttentionLayout, compiler: Compiler | None = None, index: Tensor | None = None
    ) -> Tensor:
        """Return the residual stream after the layer, `(…, C)`; with `index` `(M,)` that of those tokens, `(M, C)`."""
        before = Block.before_attention if compiler is None else compiler(Block.before_attention)
        after = Block.after_attention if compiler is None else compiler(Block.after_attention)
        q, k, v = before(self, x).unflatten(-1, (3, *self.heads)).unbind(-3)  # (…, H, D) each
        y = layout.attend(self.layer, q, k, v, self.dropout.p if self.training else 0.0).flatten(-2)  # (…, C)
        if index is not None:
            # In the dtype of x, in which a GPU then sums the gradients of a token.
            y = y.to(x.dtype).flatten(0, -2).index_select(0, index).to(y.dtype)
            x = x.flatten(0, -2).index_select(0, index)
        return after(self, x, y)


class GPT(CausalLM):
    """GPT-2: token ids in, logits (`forward`) or the hidden states before the head (`hidden_states`) out."""

    def __init__(self, config: GPTConfig, dropout: float = 0.0, activation_checkpointing: int = False) -> None:
        super().__init__()
        self.config, self.activation_checkpointing = config, activation_checkpointing
        # From zeros: torch's random initialisation, which is overwritten anyway, imports its compiler on "meta".
        self.wte = nn.Embedding.from_pretrained(torch.zeros(config.n_vocab, config.d_model), freeze=False)
        self.wpe = nn.Embedding.from_pretrained(torch.zeros(config.context_length, config.d_model), freeze=False)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(config, layer, dropout) for layer in range(config.n_layers))
        self.ln_f = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)

    @property
    def head_weight(self) -> Tensor:
        """The output projection `(V, C)`, tied to the token embedding."""
        return self.wte.weight

    @property
    def head_parameters(self) -> list[nn.Parameter]:
        return list(self.wte.parameters())

    @property
    def final_norm(self) -> nn.Module:
        return self.ln_f

    def hidden_states(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        layout: AttentionLayout | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """As `CausalLM.hidden_states`; after its attention the last layer computes the tokens of `index` alone."""
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[-1], device=input_ids.device)
        layout = layout or CausalRows()
        # The head gives the tied weight a dense gradient; a sparse one is added to it without another (V, C) of zeros.
        # On a GPU zeros are cheap, and a sparse gradient would sort its rows.
        tokens = F.embedding(input_ids, self.wte.weight, sparse=self.training and input_ids.is_cpu)
        x = self.dropout((tokens if self.embedding_noise is None else self.noised(tokens)) + self.wpe(position_ids))
        compiler = self.compiler if self.training else None
        for n, block in enumerate(self.blocks):
            inputs = x, layout, compiler, index if block is self.blocks[-1] else None
            if self.training and self.activation_checkpointing and n % self.activation_checkpointing == 0:
                draws = any(isinstance(module, nn.Dropout) and module.p > 0 for module in block.modules())
                x = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=draws)
            else:
                x = block(*inputs)
        return self.ln_f(x)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor | None = None, layout: AttentionLayout | None = None
    ) -> Tensor:
        """Return the logits `(…, V)` of the token after each of `input_ids` `(…)`."""
        return self.logits(self.hidden_states(input_ids, position_ids, layout))

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw GPT-2's initial weights: normal with std 0.02, residual projections divided by sqrt(2 · n_layers)."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                shrink = math.sqrt(2 * self.config.n_layers) if name.endswith("proj.weight") else 1.0
                parameter.normal_(0.0, INIT_STD / shrink, generator=generator)
            else:
                parameter.fill_(1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0)
