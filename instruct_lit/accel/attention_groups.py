"""Tokens in groups of queries that attend in one call, of a few shapes only.

Kernels of matrix libraries are made for every shape, so sizes are rounded up to multiples of `STEP_TOKENS`: a group may
have more queries and keys than it needs, and the surplus is masked or dropped.

Query heads that share a head of keys are further queries of it, so no keys are repeated.

Shapes: B rows, N tokens, P heads of keys, G query heads for each, D the width of a head.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP_TOKENS = 192  # up to which packed documents share a group
PIECE_TOKENS = 256  # of a longer document that form a group
ROW_TOKENS = 128  # tokens of each padded row that form a group
STEP_TOKENS = 32


@dataclass(frozen=True)
class Group:
    """The queries of the tokens `start` to `end`, which attend in one call.

    Their keys are the first `n_prefix` tokens and those from `first_key` on. `bias` `(queries·G, keys)` is zero where a
    query sees a key and minus infinity elsewhere. It may have more rows and columns than there are tokens: results of
    queries from `end` on are dropped, and no other query sees a key from there on.
    """

    start: int
    end: int
    first_key: int
    n_prefix: int
    bias: Tensor
    n_shared: int = 1  # G

    @property
    def n_own(self) -> int:
        """Number of contiguous keys from `first_key` on."""
        return self.bias.shape[1] - self.n_prefix

    @property
    def n_queries(self) -> int:
        """Number of tokens with a query, surplus ones included."""
        return len(self.bias) // self.n_shared

    @property
    def n_reached(self) -> int:
        """The number of tokens that `keys_of` indexes."""
        return self.first_key + self.n_own

    def queries_of(self, x: Tensor) -> Tensor:
        """The query rows `(B·P, queries·G, D)` of `x` `(B, P, N, G, D)`, zeros for surplus ones."""
        return contiguous_rows(x[:, :, self.start : self.end], self.n_queries).flatten(2, 3).flatten(0, 1)

    def keys_of(self, x: Tensor) -> Tensor:
        """The key rows `(B·P, keys, D)` of `x` `(B, P, N, D)`."""
        own = x[:, :, self.first_key : self.first_key + self.n_own]
        return (torch.cat((x[:, :, : self.n_prefix], own), 2) if self.n_prefix else own).flatten(0, 1)

    def write_queries(self, out: Tensor, part: Tensor) -> None:
        """Write the rows of `part` `(B·P, queries·G, D)` that are no surplus to their places in `out`."""
        part = part.view(*out.shape[:2], -1, *out.shape[3:])
        out[:, :, self.start : self.end] = part[:, :, : self.end - self.start]

    def add_to_keys(self, total: Tensor, part: Tensor) -> None:
        """Add `part` `(B·P, keys, D)` to the rows that `keys_of` takes."""
        part = part.view(*total.shape[:2], *part.shape[1:])
        total[:, :, self.first_key : self.first_key + self.n_own] += part[:, :, self.n_prefix :]
        if self.n_prefix:
            total[:, :, : self.n_prefix] += part[:, :, : self.n_prefix]


def contiguous_rows(x: Tensor, n_rows: int) -> Tensor:
    """A contiguous copy of `x` `(B, P, N, …)` with N rounded up to `n_rows` by zeros."""
    rows = x.new_empty(*x.shape[:2], n_rows, *x.shape[3:])
    rows[:, :, : x.shape[2]] = x
    rows[:, :, x.shape[2] :] = 0
    return rows


def n_rows_for(n_tokens: int, groups: Sequence[Group]) -> int:
    """The number of rows that N tokens need so that `keys_of` of all groups finds its own."""
    return max(n_tokens, *(group.n_reached for group in groups))


def bias_of(visible: Tensor, n_shared: int, like: Tensor) -> Tensor:
    """Zero where `visible` is true and minus infinity elsewhere, each row G times, with dtype and device of `like`."""
    hidden = ~visible.to(like.device).repeat_interleave(n_shared, 0)
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, -math.inf)


def row_groups(n_tokens: int, n_shared: int, like: Tensor, window: int | None = None) -> list[Group]:
    """Groups of consecutive tokens of causal rows of `n_tokens`."""
    visible = torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril().triu(1 - (window or n_tokens))
    ends = [(start, min(start + ROW_TOKENS, n_tokens)) for start in range(0, n_tokens, ROW_TOKENS)]
    return [Group(start, end, 0, 0, bias_of(visible[start:end, :end], n_shared, like), n_shared) for start, end in ends]


def document_groups(
    lengths: Sequence[int], n_prefix: int, n_shared: int, like: Tensor, window: int | None = None
) -> list[Group]:
    """Groups of packed documents behind a shared prefix: short documents together, long ones in pieces."""
    cuts: list[tuple[int, int, int]] = []  # start and end of a group, and where its first document begins
    begin = 0
    for length in [n_prefix, *lengths]:
        end = begin + length
        if cuts and end - cuts[-1][2] <= GROUP_TOKENS:
            cuts[-1] = cuts[-1][0], end, cuts[-1][2]
        elif length:
            step = _round_up(length / math.ceil(length / PIECE_TOKENS))
            # A piece sees no more than the window before it, rounded up so that surplus queries find themselves among
            # the keys. Keys of the prefix must not be among its own as well.
            n_before = length if window is None or begin < n_prefix else _round_up(window - 1)
            cuts += [(at, min(at + step, end), max(begin, at - n_before)) for at in range(begin, end, step)]
        begin = end
    sizes = torch.tensor([n_prefix, *lengths])
    document = torch.repeat_interleave(sizes)  # (N,): 0 for the prefix
    position = torch.arange(len(document)) - (sizes.cumsum(0) - sizes)[document] + n_prefix * (document > 0)
    return [_group(*cut, n_prefix, document, position, n_shared, like, window) for cut in cuts]


def _group(
    start: int, end: int, first_key: int, n_prefix: int, document: Tensor, position: Tensor, n_shared: int,
    like: Tensor, window: int | None,
) -> Group:  # fmt: skip
    """The group of the tokens `start` to `end`, which see the prefix and the tokens of their document up to themselves.

    Surplus queries see the prefix or, where there is none, themselves, so that no softmax is over nothing.
    """
    n_prefix = n_prefix if first_key else 0  # the first group has it among its own keys
    n_queries, n_keys = _round_up(end - start), _round_up(n_prefix + end - first_key)
    keys = torch.cat((torch.arange(n_prefix), torch.arange(first_key, first_key + n_keys - n_prefix)))
    queries = torch.arange(start, start + n_queries)
    of, at = (F.pad(x, (0, n_queries + n_keys)) for x in (document, position))
    visible = ((of[keys] == of[queries, None]) | (of[keys] == 0)) & (keys <= queries[:, None])
    if window is not None:
        visible &= (at[queries, None] - at[keys] < window) | (queries[:, None] >= end)
    return Group(start, end, first_key, n_prefix, bias_of(visible, n_shared, like), n_shared)


def _round_up(n: float) -> int:
    return math.ceil(n / STEP_TOKENS) * STEP_TOKENS
