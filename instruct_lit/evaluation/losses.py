"""The loss of each reference response under a finished model, for the loss and the perplexity by category."""

from collections.abc import Callable, Iterator, Sequence

import torch

from instruct_lit.core.data.batching import Collator, Layout
from instruct_lit.core.data.encode import EncodedExample
from instruct_lit.core.data.tokenizer import Tokenizer
from instruct_lit.core.model.attention import PackedDocuments
from instruct_lit.core.model.causal import CausalLM, token_losses

MAX_TOKENS = 4096  # of one forward pass


@torch.inference_mode()
def response_losses(
    model: CausalLM,
    tokenizer: Tokenizer,
    examples: Sequence[EncodedExample],
    on_done: Callable[[int], object] | None = None,
) -> list[tuple[float, int]]:
    """The mean loss of each example's response tokens in nats, and their number, the end-of-text included.

    The mean of these losses weighted by the numbers is what training logs as `response_loss`.

    Args:
        on_done: called with the number of examples of each forward pass.
    """
    was_training = model.training
    model.eval()
    longest = max((len(example.ids) - 1 for example in examples), default=0)
    layout_name: Layout = "packed" if longest <= model.layout_length else "padded"
    collate = Collator(tokenizer.eot_id, tokenizer.n_bytes_of, layout_name)
    losses: list[tuple[float, int]] = [(0.0, 0)] * len(examples)
    order = sorted(range(len(examples)), key=lambda place: len(examples[place].ids))
    for part in passes(len(order), lambda number, _: len(examples[order[number]].ids), MAX_TOKENS):
        places = [order[number] for number in part]
        batch = collate([examples[place] for place in places]).to(model.head_weight.device)
        layout = PackedDocuments(batch.document_lengths) if batch.document_lengths is not None else None
        states = model.hidden_states(batch.input_ids, batch.position_ids, layout, batch.loss_index)
        of_tokens = token_losses(model, states, batch.targets).cpu().double()
        counts = [int(examples[place].is_response[1:].sum()) for place in places]
        for place, part in zip(places, of_tokens.split(counts), strict=True):
            losses[place] = (float(part.mean()), len(part))
        if on_done is not None:
            on_done(len(places))
    model.train(was_training)
    return losses


def passes(n_texts: int, n_new: Callable[[int, bool], int], max_tokens: int) -> Iterator[range]:
    """Ranges of neighbours that have at most `max_tokens` tokens together, or of a single text.

    Args:
        n_new: the tokens that a text, given by its number, adds to a pass, and whether it is the first one there.
    """
    start = n_tokens = 0
    for number in range(n_texts):
        if number > start and n_tokens + n_new(number, False) > max_tokens:
            yield range(start, number)
            start, n_tokens = number, 0
        n_tokens += n_new(number, number == start)
    if n_texts:
        yield range(start, n_texts)
