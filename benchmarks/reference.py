"""A plain GPT and loops that do what the scripts of LLMs-from-scratch chapter 7 do, written for comparison.

Attention is eager with a stored mask, queries, keys and values are three projections, normalisation and GELU are
written out, the head is a matrix of its own, all logits are made, the optimizer is torch's AdamW as it comes, and
generation computes the whole text anew for every token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    mask: Tensor

    def __init__(self, d_model: int, n_heads: int, context_length: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query, self.key, self.value = (nn.Linear(d_model, d_model) for _ in range(3))
        self.out = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(0.0)
        self.register_buffer("mask", torch.triu(torch.ones(context_length, context_length), diagonal=1))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (
            f(x).view(b, t, self.n_heads, c // self.n_heads).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(2, 3)
        scores.masked_fill_(self.mask.bool()[:t, :t], -torch.inf)
        weights = self.dropout(torch.softmax(scores / k.shape[-1] ** 0.5, dim=-1))
        return self.out((weights @ v).transpose(1, 2).contiguous().view(b, t, c))


class Norm(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return self.weight * (centred / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5)) + self.bias


class TanhGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))


class Block(nn.Module):
    def __init__(self, d_model: int, n_heads: int, context_length: int) -> None:
        super().__init__()
        self.attention = Attention(d_model, n_heads, context_length)
        self.mlp = nn.Sequential(nn.Linear(d_model, 4 * d_model), TanhGELU(), nn.Linear(4 * d_model, d_model))
        self.norm_1, self.norm_2 = Norm(d_model), Norm(d_model)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm_1(x)))
        return x + self.dropout(self.mlp(self.norm_2(x)))


class PlainGPT(nn.Module):
    """A GPT-2 with an untied head; forward gives all logits `(B, T, V)`."""

    def __init__(
        self, n_layers: int, n_heads: int, d_model: int, context_length: int = 1024, n_vocab: int = 50257
    ) -> None:
        super().__init__()
        self.context_length = context_length
        self.tokens, self.positions = nn.Embedding(n_vocab, d_model), nn.Embedding(context_length, d_model)
        self.blocks = nn.Sequential(*[Block(d_model, n_heads, context_length) for _ in range(n_layers)])
        self.norm = Norm(d_model)
        self.head = nn.Linear(d_model, n_vocab, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(self.blocks(x)))


def collate(batch: list[list[int]], pad_id: int = 50256) -> tuple[Tensor, Tensor]:
    """End-of-text, padding to the longest, shift by one, padding targets behind the first end-of-text masked."""
    width = max(len(ids) for ids in batch) + 1
    inputs, targets = [], []
    for ids in batch:
        padded = torch.tensor([*ids, *[pad_id] * (width - len(ids))])
        target = padded[1:].clone()
        padding = torch.nonzero(target == pad_id).squeeze(1)
        target[padding[1:]] = -100
        inputs.append(padded[:-1])
        targets.append(target)
    return torch.stack(inputs), torch.stack(targets)


def train_step(model: PlainGPT, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor) -> None:
    """Forward, loss on all tokens, backward, update."""
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    loss.backward()
    optimizer.step()


@torch.no_grad()
def generate(model: PlainGPT, ids: list[int], max_new_tokens: int, eot_id: int = 50256) -> list[int]:
    """Greedy decoding without a cache."""
    text = torch.tensor([ids], device=model.tokens.weight.device)
    for _ in range(max_new_tokens):
        following = model(text[:, -model.context_length :])[:, -1].argmax(-1, keepdim=True)
        if int(following) == eot_id:
            break
        text = torch.cat((text, following), dim=1)
    return text[0, len(ids) :].tolist()
