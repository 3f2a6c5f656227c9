"""The profile of an encoded data set: lengths, supervised tokens, cost of padding, odd records, warnings."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile
from operator import itemgetter
from typing import Any

import numpy as np

from instruct_lit.core.data.batching import Batch, BatchSampler, supervised
from instruct_lit.core.data.datamodule import InstructionData
from instruct_lit.core.data.encode import EncodedExample, EncodedStore
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import EOT
from instruct_lit.datasets.filters import Refusals
from instruct_lit.datasets.near_duplicates import words
from instruct_lit.errors import ConfigError

REFUSING = Refusals()
N_SHOWN = 3  # examples that are listed for an oddity
PLACEHOLDERS = ("none", "n/a", "null", "nan", "no input", "<noinput>")  # that stand for no input
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
MAX_BATCHES = 200  # of an epoch, from which the cost of padding is computed
# Shares below or above which the data are usually wrong.
LOW_SUPERVISED, HIGH_TRUNCATED, HIGH_WASTE = 0.05, 0.1, 0.5


@dataclass(frozen=True)
class Profile:
    """The result of `profile`. Lengths are in tokens; responses are the parts that are trained on."""

    counts: dict[str, int]
    n_examples: int
    prompt_lengths: np.ndarray
    response_lengths: np.ndarray
    supervised_share: float
    ends_share: float
    header: str
    header_share: float
    mask_share: float  # of the examples whose supervised tokens decode to exactly the target responses
    n_repeated_prompts: int  # examples whose prompt occurs earlier
    odd: dict[str, list[int]]  # the indices of the examples by description
    costs: dict[str, float]  # the positions that are computed per token by layout
    n_responses: int = 0  # that are trained on
    kinds: dict[str, int] = field(default_factory=dict)  # how many examples are of each kind of `kinds_of`

    @property
    def truncated_share(self) -> float:
        """Share of the examples that were truncated to `data.max_length`."""
        return self.counts.get("n_truncated", 0) / self.n_examples


def profile(
    store: EncodedStore, template: Template, tokenizer: Any, mask_prompt: bool, costs: dict[str, float]
) -> Profile:
    """The profile of every example of a store, its tokens and its record."""
    n_response = store.n_response
    n_targets = int((store.lengths - 1).sum())  # the first token of an example is never a target
    header = header_of(template, tokenizer.decode([tokenizer.eot_id]))
    odd: dict[str, list[int]] = {}
    prompts: set[tuple[Any, ...]] = set()
    kinds: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    for index in range(len(store)):
        example, encoded = store.example(index), store[index]
        for what in oddities(example, header):
            odd.setdefault(what, []).append(index)
        kinds.update(kinds_of(example))
        prompts.add((*example.history, example.instruction, example.input))
        tail = tokenizer.decode(encoded.ids[: encoded.n_prompt][-4 * len(header) - 8 :].tolist())
        totals.update(
            responses=len(encoded.spans),
            supervised=int((supervised(encoded, mask_prompt)[1:] > 0).sum()),
            ends=int(encoded.ids[-1]) == tokenizer.eot_id,
            headers=bool(header.strip()) and tail.endswith(header),
            exact=mask_is_exact(example, encoded, template, tokenizer),
        )
    return Profile(
        counts=dict(store.counts),
        n_examples=len(store),
        prompt_lengths=store.lengths - n_response,
        response_lengths=n_response,
        supervised_share=totals["supervised"] / n_targets,
        ends_share=totals["ends"] / len(store),
        header=header,
        header_share=totals["headers"] / len(store),
        mask_share=totals["exact"] / len(store),
        n_repeated_prompts=len(store) - len(prompts),
        odd=dict(sorted(odd.items(), key=lambda item: -len(item[1]))),
        costs=costs,
        n_responses=totals["responses"],
        kinds=dict(kinds),
    )


def kinds_of(example: Example) -> list[str]:
    """What an example has beside one question and its answer."""
    keys = {key for message in example.messages for key in message}
    found = {
        "several turns": example.history, "a system prompt": example.system, "tools": example.tools,
        "calls": "tool_calls" in keys, "thoughts": "reasoning_content" in keys, "weights": example.weights,
    }  # fmt: skip
    return [kind for kind, value in found.items() if value]


def header_of(template: Template, end: str = "") -> str:
    """The text that all prompts of a template end with, such as `### Response:` with its line breaks; may be empty.

    Text up to `end`, the token that closes a turn, belongs to the turn before.
    """
    ends = [template.prompt(Example(a, "", b))[::-1] for a, b in (("a", ""), ("b", "c"), ("d", "e"))]
    common = takewhile(lambda letters: len(set(letters)) == 1, zip(*ends, strict=False))
    header = "".join(letter for letter, *_ in common)[::-1]
    return header.rpartition(end)[2] if end else header


def response_texts(encoded: EncodedExample, tokenizer: Any) -> list[str]:
    """The responses that are trained on, decoded from the mask, without their end-of-text."""
    ids = encoded.ids.tolist()
    ends = [end - (ids[end - 1] == tokenizer.eot_id) for _, end in encoded.spans]
    return [tokenizer.decode(ids[start:end]) for (start, _), end in zip(encoded.spans, ends, strict=True)]


def mask_is_exact(example: Example, encoded: EncodedExample, template: Template, tokenizer: Any) -> bool:
    """Whether the supervised tokens decode to the assistant's responses (all or the last, perhaps truncated)."""
    found = response_texts(encoded, tokenizer)
    end = tokenizer.decode([tokenizer.eot_id])
    end = end if tokenizer.encode(end) == [tokenizer.eot_id] else ""  # then the template may write it itself
    targets = [tokenizer.unprotect(response.removesuffix(end)) for _, response in template.turns(example)]
    weights = example.weights[-len(targets) :] or [1] * len(targets)
    targets = [target for target, weight in zip(targets, weights, strict=True) if weight > 0][-len(found) :]
    if encoded.ids[-1] != tokenizer.eot_id and found:
        found[-1] = found[-1].rstrip("\ufffd")  # truncated within a character
        targets[-1] = targets[-1][: len(found[-1])]
    return found == targets


def oddities(example: Example, header: str) -> list[str]:
    """Descriptions of what is odd about one record."""
    texts = (example.instruction, example.input, example.output)
    found = {
        "the response repeats the instruction": example.instruction
        and words(example.output) == words(example.instruction),
        "the response has no letter or digit": not re.search(r"\w", example.output),
        f"a text contains {header.strip()!r}": header.strip() and any(header.strip() in text for text in texts),
        f"a text contains {EOT!r}": any(EOT in text for text in texts),
        "a text has control characters": any(map(_CONTROL.search, texts)),
        "the input is a placeholder": example.input.strip().lower() in PLACEHOLDERS,
        "a response begins with a refusal": not REFUSING.keeps(example),
        "the response begins or ends with white space": example.output != example.output.strip(),
    }
    return [what for what, is_so in found.items() if is_so]


def training_batches(data: InstructionData, batching: Mapping[str, Any]) -> tuple[int, list[Batch]]:
    """The number of training batches of an epoch with the settings of `conf/batching`, and the first of them."""
    store, indices = data.examples_of("train")
    if len(indices) == 0:
        raise ConfigError(f"data.split={data.split_spec}: no example for train, so there are no batches")
    lengths, size = store.lengths[indices], data.batching.batch_size
    how = {key: batching[key] for key in ("grouping", "max_tokens")}
    sampler = BatchSampler(indices, lengths, size, seed=data.seed, **how)
    layout, shared = batching["layout"], batching["shared_prefix"]
    collator = replace(data.collator, layout=layout, shared_prefix=shared, pad_to_multiple_of=1)
    return len(sampler), [collator([store[i] for i in batch]) for batch in islice(sampler, MAX_BATCHES)]


def positions_per_token(batches: Iterable[Batch]) -> float:
    """Positions that the model computes per input token of the examples: 1.25 is 25 % padding."""
    pairs = [(batch.input_ids.numel(), batch.n_tokens) for batch in batches]
    positions, tokens = (sum(column) for column in zip(*pairs, strict=True))
    return positions / tokens


def histogram(lengths: np.ndarray, n_bins: int = 10) -> list[tuple[int, int, int]]:
    """At most `n_bins` bins of equal, whole width as (minimum, maximum, number of examples)."""
    low, high = int(lengths.min()), int(lengths.max())
    width = max(1, -(-(high - low + 1) // n_bins))
    edges = np.arange(low, high + width + 1, width)
    counts, _ = np.histogram(lengths, bins=edges)
    return [(int(a), int(b) - 1, int(n)) for a, b, n in zip(edges, edges[1:], counts, strict=False)]


def warnings_of(found: Profile, layout: str, n_val: int | None) -> list[str]:
    """Warnings about common problems, each with its remedy; `n_val` is None where it is unknown."""
    header, n_dropped = found.header.strip(), found.counts.get("n_dropped_long", 0)
    cost, (best, lowest) = found.costs.get(layout, 0), min(found.costs.items(), key=itemgetter(1), default=("", 0))
    lines = {
        f"only {found.supervised_share:.1%} of the targets are supervised: long prompts, short responses; check "
        "data.columns, or train on prompts too with data.mask_prompt=false": found.supervised_share < LOW_SUPERVISED,
        "the template has no header before the response: the model cannot see where to begin; change template":
            not header,
        f"{1 - found.header_share:.1%} of the prompts do not end with {header!r}": header and found.header_share < 1,
        f"{1 - found.mask_share:.1%} of the masks do not decode to the responses (a fault of the tokenizer)":
            found.mask_share < 1,
        "no end-of-text is supervised: the model will never stop; raise data.max_length": found.ends_share == 0,
        f"{found.truncated_share:.0%} of the responses are truncated, without end-of-text, or lost whole turns of "
        "their conversation; raise data.max_length or use data.on_long=drop":
            found.ends_share and found.truncated_share > HIGH_TRUNCATED,
        f"{n_dropped} examples are too long and were dropped; raise data.max_length":
            n_dropped > HIGH_TRUNCATED * found.n_examples,
        f"{cost - 1:.0%} padding with batching={layout}; batching={best} has {lowest:.2f}": cost > 1 + HIGH_WASTE,
        "half of the responses are a single token or none; check data.columns":
            np.median(found.response_lengths) <= 2,
        f"{found.n_repeated_prompts} prompts occur earlier with another response":
            found.n_repeated_prompts > 0.05 * found.n_examples,
        f"{n_val} validation examples are too few for early stopping; raise data.split.val":
            n_val is not None and n_val < 20,
    }  # fmt: skip
    return [line for line, is_so in lines.items() if is_so]
