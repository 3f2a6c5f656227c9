"""Log-likelihoods of continuations, with the common prefixes of prompts computed once."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from instruct_lit.core.model.causal import CausalLM
from instruct_lit.evaluation.losses import passes
from instruct_lit.suites.prefix_tree import PrefixTree, n_common

Pair = tuple[Sequence[int], Sequence[int]]  # context and continuation ids
MAX_TOKENS, MAX_TOKENS_CUDA = 4096, 32768  # new tokens of one pass
MAX_LOGIT_ROWS = 256  # positions whose logits are held at the same time


class Score(NamedTuple):
    """Log-likelihood of a continuation in nats, and whether greedy decoding gives it."""

    log_likelihood: float
    is_greedy: bool


@torch.inference_mode()
def log_likelihoods(
    model: CausalLM,
    pairs: Sequence[Pair],
    max_tokens: int | None = None,
    on_scored: Callable[[dict[int, Score]], None] | None = None,
) -> list[Score]:
    """Score the continuation of every pair; a text longer than the context is truncated from the left.

    Pairs are sorted, so that common prefixes are adjacent, and computed in passes of about `max_tokens` new tokens.
    Contexts and continuations have at least one token, continuations at most the context length.

    Args:
        on_scored: called with the scores of each pass by the index of their pair.
    """
    device = model.head_weight.device
    longest = model.config.context_length
    texts = [(*context, *continuation)[-longest - 1 : -1] for context, continuation in pairs]
    was_training = model.training
    model.eval()
    scores: dict[int, Score] = {}
    order = sorted(range(len(pairs)), key=lambda i: texts[i])
    max_tokens = max_tokens or (MAX_TOKENS_CUDA if device.type == "cuda" else MAX_TOKENS)

    def n_new(number: int, is_first: bool) -> int:
        """The tokens that a text adds to the tree of its pass."""
        text = texts[order[number]]
        return len(text) - (0 if is_first else n_common(texts[order[number - 1]], text))

    for part in passes(len(order), n_new, max_tokens):
        members = [order[number] for number in part]
        states_at, paths = _lay_out(model, [texts[i] for i in members], device)
        found = _read(model, states_at, [(path, pairs[i][1]) for path, i in zip(paths, members, strict=True)])
        new = dict(zip(members, found, strict=True))
        scores |= new
        if on_scored is not None:
            on_scored(new)
    model.train(was_training)
    return [scores[i] for i in range(len(pairs))]


def _lay_out(
    model: CausalLM, texts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Callable[[torch.Tensor], torch.Tensor], list[list[int]]]:
    """A function of rows `(M,)` that returns their hidden states `(M, C)`, and for each text the rows of its tokens."""
    if max(map(len, texts)) > model.layout_length:  # one padded row per text
        rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(text, device=device) for text in texts], batch_first=True)
        places = [list(range(i * rows.shape[1], i * rows.shape[1] + len(text))) for i, text in enumerate(texts)]
        return lambda index: model.hidden_states(rows, index=index), places
    tree = PrefixTree(texts)
    ids, positions = (torch.tensor(x, device=device) for x in (tree.ids, tree.position_ids))
    return lambda index: model.hidden_states(ids, positions, tree, index), tree.paths


def _read(
    model: CausalLM,
    states_at: Callable[[torch.Tensor], torch.Tensor],
    texts: Sequence[tuple[list[int], Sequence[int]]],
) -> list[Score]:
    """Scores of continuations, predicted by the last rows of their paths; each row's logits are computed once."""
    rows = torch.tensor([row for path, targets in texts for row in path[len(path) - len(targets) :]])
    targets = torch.tensor([token for _, continuation in texts for token in continuation])
    unique, where = rows.unique(return_inverse=True)
    hidden = states_at(unique.to(model.head_weight.device))
    values, greedy = torch.empty(len(rows)), torch.empty(len(rows), dtype=torch.bool)
    for start in range(0, len(unique), MAX_LOGIT_ROWS):
        logits = model.logits(hidden[start : start + MAX_LOGIT_ROWS]).float()
        normaliser, best = logits.logsumexp(-1).cpu(), logits.argmax(-1).cpu()
        part = (where // MAX_LOGIT_ROWS == start // MAX_LOGIT_ROWS).nonzero()[:, 0]
        row, token = where[part] - start, targets[part]
        values[part] = logits[row.to(logits.device), token.to(logits.device)].cpu() - normaliser[row]
        greedy[part] = best[row] == token
    counts = [len(continuation) for _, continuation in texts]
    parts = zip(values.split(counts), greedy.split(counts), strict=True)
    return [Score(float(own.sum()), bool(are_greedy.all())) for own, are_greedy in parts]
