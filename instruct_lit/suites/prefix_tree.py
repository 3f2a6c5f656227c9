"""A tree of the tokens of texts with common prefixes, and its attention layout: each prefix is computed once.

Few-shot prompts share their examples, and the choices of a question share the question. Under causal attention the
hidden states of a common prefix are identical, so one pass over the tree gives those of every text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from instruct_lit.core.model.attention import repeat_kv

MAX_KEYS = 1 << 14  # key rows gathered for one attention call, so that memory does not grow with the batch
MAX_WASTE = 1.5  # cells of an attention call per cell without padding


@dataclass(frozen=True)
class Branch:
    """The tokens that one text adds to the tree: the last `n_own` rows of the flat batch in `path`."""

    path: list[int]
    n_own: int


class PrefixTree:
    """A flat batch `(N,)` of the tokens of sorted texts, each without its common prefix with the previous text.

    `ids` and `position_ids` are the model's inputs, `paths[i]` the rows of text i in its outputs. As an attention
    layout, it lets every token attend to the path that leads to it.
    """

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self.ids: list[int] = []
        self.position_ids: list[int] = []
        self.paths: list[list[int]] = []
        self.branches: list[Branch] = []
        self._blocks: dict[int | None, list[_Block]] = {}  # of windows
        previous: Sequence[int] = ()
        for text in texts:
            n_shared = n_common(previous, text)
            rows = list(range(len(self.ids), len(self.ids) + len(text) - n_shared))
            path = (self.paths[-1][:n_shared] if n_shared else []) + rows
            if rows:
                self.branches.append(Branch(path, len(rows)))
            self.ids += text[n_shared:]
            self.position_ids += range(n_shared, len(text))
            self.paths.append(path)
            previous = text

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float, window: int | None = None) -> Tensor:
        if window is not None and window >= max(map(len, self.paths)):
            window = None
        if window not in self._blocks:
            self._blocks[window] = _cut_into_blocks(self.branches, window, q.device)
        k, v = repeat_kv(q, k, v)
        n_heads, d_head = q.shape[1:]
        out = torch.empty_like(q)
        kv = torch.stack((k, v), dim=1).flatten(1)  # (N, 2·H·D): one gather for both
        for block in self._blocks[window]:
            n = block.queries.shape[0]
            keys, values = kv[block.keys].view(n, -1, 2, n_heads, d_head).permute(2, 0, 3, 1, 4)  # (B, H, Tk, D)
            queries = q[block.queries].transpose(1, 2)  # (B, H, Tq, D)
            seen = F.scaled_dot_product_attention(queries, keys, values, block.mask, dropout_p=dropout)
            out[block.queries[block.real]] = seen.transpose(1, 2)[block.real]
        return out


@dataclass(frozen=True)
class _Block:
    """Branches of similar shape: rows of queries `(B, Tq)` and keys `(B, Tk)`, padded on the right with row 0.

    `real` `(B, Tq)` is False for padding, `mask` `(B, 1, Tq, Tk)` True where a query attends to a key.
    """

    queries: Tensor
    keys: Tensor
    real: Tensor
    mask: Tensor


def _cut_into_blocks(branches: Sequence[Branch], window: int | None, device: torch.device) -> list[_Block]:
    groups: list[list[Branch]] = []
    n_real = 0
    for branch in sorted(branches, key=lambda b: (-b.n_own, -len(b.path))):
        cells = branch.n_own * len(branch.path)
        if groups:
            n_queries = groups[-1][0].n_own
            n_keys = max(len(branch.path), *(len(b.path) for b in groups[-1]))
            n_rows = len(groups[-1]) + 1
            if n_rows * n_keys <= MAX_KEYS and n_rows * n_keys * n_queries <= MAX_WASTE * (n_real + cells):
                groups[-1].append(branch)
                n_real += cells
                continue
        groups.append([branch])
        n_real = cells
    return [_block(group, window, device) for group in groups]


def _block(group: Sequence[Branch], window: int | None, device: torch.device) -> _Block:
    n_queries, n_keys = group[0].n_own, max(len(b.path) for b in group)
    keys = torch.tensor([b.path + [0] * (n_keys - len(b.path)) for b in group])
    n_own = torch.tensor([b.n_own for b in group])[:, None]
    start = torch.tensor([len(b.path) for b in group])[:, None] - n_own
    columns = torch.arange(n_queries)
    real = columns < n_own
    positions = start + columns  # (B, Tq), on the path
    queries = keys.gather(1, torch.where(real, positions, 0))
    distance = positions[:, None, :, None] - torch.arange(n_keys)
    mask = (distance >= 0) & (distance < (window or n_keys))
    return _Block(queries.to(device), keys.to(device), real.to(device), mask.to(device))


def n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading tokens that two texts share."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # a[:low] is shared, and at most a[:high]; slices are compared many times as fast as items
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low
