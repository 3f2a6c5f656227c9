"""Log-likelihoods of continuations, with every beginning that prompts share computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from instruct_lit.core.generation.engine import n_common
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.suites.prefix_tree import PrefixTree

Pair = tuple[Sequence[int], Sequence[int]]  # context and continuation ids
MAX_TOKENS = {"cpu": 4096, "cuda": 32768}  # new tokens of one pass
MAX_LOGIT_ROWS = 256  # positions whose logits are held at the same time


@dataclass(frozen=True)
class Score:
    """Log-likelihood of a continuation in nats, and whether greedy decoding would write it."""

    log_likelihood: float
    is_greedy: bool


@torch.inference_mode()
def log_likelihoods(
    model: CausalLM,
    pairs: Sequence[Pair],
    max_tokens: int | None = None,
    on_scored: Callable[[dict[int, Score]], None] | None = None,
) -> list[Score]:
    """Score the continuation of every pair; a text longer than the context is cut from the left.

    Pairs are sorted, so that common beginnings lie side by side, and go through the model in passes of about
    `max_tokens` new tokens. `on_scored` receives the scores of each pass by the index of their pair. Continuations
    have at least one token and at most as many as the context, contexts at least one.
    """
    device = model.head_weight.device
    longest = model.config.context_length
    texts = [(*context, *continuation)[-longest - 1 : -1] for context, continuation in pairs]
    was_training = model.training
    model.eval()
    scores: dict[int, Score] = {}
    order = sorted(range(len(pairs)), key=lambda i: texts[i])
    for chunk in _passes([texts[i] for i in order], max_tokens or MAX_TOKENS[device.type]):
        members = [order[place] for place in chunk]
        states_at, paths = _laid_out(model, [texts[i] for i in members], device)
        found = _read(model, states_at, [(path, pairs[i][1]) for path, i in zip(paths, members, strict=True)])
        new = dict(zip(members, found, strict=True))
        scores |= new
        if on_scored is not None:
            on_scored(new)
    model.train(was_training)
    return [scores[i] for i in range(len(pairs))]


def _laid_out(
    model: CausalLM, texts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Callable[[torch.Tensor], torch.Tensor], list[list[int]]]:
    """What gives the hidden states `(M, C)` at rows `(M,)`, and for each text the rows of its tokens."""
    if model.no_layouts is not None:  # each text a padded row of its own
        rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(text, device=device) for text in texts], batch_first=True)
        places = [list(range(i * rows.shape[1], i * rows.shape[1] + len(text))) for i, text in enumerate(texts)]
        return lambda index: model.hidden_states(rows, index=index), places
    tree = PrefixTree(texts)
    ids, positions = (torch.tensor(x, device=device) for x in (tree.ids, tree.position_ids))
    return lambda index: model.hidden_states(ids, positions, tree, index), tree.paths


def _passes(texts: Sequence[Sequence[int]], max_tokens: int) -> Iterator[range]:
    """Cut sorted texts into runs that add at most `max_tokens` tokens to a tree, or are a single text."""
    start, n_tokens = 0, 0
    for place, text in enumerate(texts):
        n_new = len(text) - (n_common(texts[place - 1], text) if place > start else 0)
        if place > start and n_tokens + n_new > max_tokens:
            yield range(start, place)
            start, n_tokens = place, 0
            n_new = len(text)
        n_tokens += n_new
    if texts:
        yield range(start, len(texts))


def _read(
    model: CausalLM,
    states_at: Callable[[torch.Tensor], torch.Tensor],
    wanted: Sequence[tuple[list[int], Sequence[int]]],
) -> list[Score]:
    """Scores of continuations that end behind the last row of their paths; each row's logits are computed once."""
    rows = torch.tensor([row for path, targets in wanted for row in path[len(path) - len(targets) :]])
    targets = torch.tensor([token for _, continuation in wanted for token in continuation])
    unique, where = rows.unique(return_inverse=True)
    hidden = states_at(unique.to(model.head_weight.device))
    order = where.argsort(stable=True)
    bounds = torch.searchsorted(where[order], torch.arange(0, len(unique) + MAX_LOGIT_ROWS, MAX_LOGIT_ROWS))
    values, greedy = torch.empty(len(rows)), torch.empty(len(rows), dtype=torch.bool)
    for number, start in enumerate(range(0, len(unique), MAX_LOGIT_ROWS)):
        logits = F.linear(hidden[start : start + MAX_LOGIT_ROWS], model.head_weight).float()
        normaliser, best = logits.logsumexp(-1).cpu(), logits.argmax(-1).cpu()
        asked = order[int(bounds[number]) : int(bounds[number + 1])]
        row, token = where[asked] - start, targets[asked]
        values[asked] = logits[row.to(logits.device), token.to(logits.device)].cpu() - normaliser[row]
        greedy[asked] = best[row] == token
    scores, place = [], 0
    for _, continuation in wanted:
        part = slice(place, place + len(continuation))
        scores.append(Score(float(values[part].sum()), bool(greedy[part].all())))
        place += len(continuation)
    return scores
