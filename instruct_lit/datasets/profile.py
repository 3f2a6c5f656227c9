"""The profile of an encoded data set: lengths, what is learnt, what padding costs, what looks odd, and what to mend."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from instruct_lit.core.data.collate import Batch
from instruct_lit.core.data.encode import EncodedExample, EncodedStore, response_texts
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import EOT
from instruct_lit.datasets.filters import Refusals

REFUSING = Refusals()
N_SHOWN = 3  # examples that are named for an oddity
# Below or above these shares something is usually wrong rather than special.
LOW_SUPERVISED, HIGH_TRUNCATED, HIGH_WASTE = 0.05, 0.1, 0.5


@dataclass(frozen=True)
class Profile:
    """What `profile` found. Lengths are in tokens; of an example, `prompt` are those not learnt, `response` the others.


    `mask_share` is the share of the examples whose learnt tokens decode to exactly the wanted answers. `odd` maps what
    is odd to the ids of the examples; `costs` maps a layout to the positions it computes per token;
    `n_repeated_prompts` counts the examples whose prompt an earlier one has too.
    """

    counts: dict[str, int]
    n_examples: int
    prompt_lengths: np.ndarray
    response_lengths: np.ndarray
    supervised_share: float
    ends_share: float
    header: str
    header_share: float
    mask_share: float
    n_repeated_prompts: int
    odd: dict[str, list[int]]
    costs: dict[str, float]

    @property
    def truncated_share(self) -> float:
        """Share of the examples that were cut to `data.max_length`."""
        return self.counts.get("n_truncated", 0) / self.n_examples


def profile(
    store: EncodedStore, template: Template, tokenizer: Any, mask_prompt: bool, costs: dict[str, float]
) -> Profile:
    """Look at every example of a store, its tokens and its record."""
    n_response = store.n_response
    n_targets = int((store.lengths - 1).sum())  # the first token of an example is never a target
    header = header_of(template)
    odd: dict[str, list[int]] = {}
    prompts: set[tuple[str, ...]] = set()
    n_repeated = n_headers = n_exact = 0
    for index in range(len(store)):
        example = store.example(index)
        for what in oddities(example, header):
            odd.setdefault(what, []).append(index)
        prompt = (example.instruction, example.input)
        n_repeated += prompt in prompts
        prompts.add(prompt)
        encoded = store[index]
        tail = tokenizer.decode(encoded.ids[: encoded.n_prompt][-4 * len(header) - 8 :].tolist())
        n_headers += bool(header.strip()) and tail.endswith(header)
        n_exact += mask_is_exact(example, encoded, template, tokenizer)
    return Profile(
        counts=dict(store.counts),
        n_examples=len(store),
        prompt_lengths=store.lengths - n_response,
        response_lengths=n_response,
        supervised_share=int(n_response.sum()) / n_targets if mask_prompt else 1.0,
        ends_share=float((store.last_ids == tokenizer.eot_id).mean()),
        header=header,
        header_share=n_headers / len(store),
        mask_share=n_exact / len(store),
        n_repeated_prompts=n_repeated,
        odd=dict(sorted(odd.items(), key=lambda item: -len(item[1]))),
        costs=costs,
    )


def header_of(template: Template) -> str:
    """The text that all prompts of a template end with, such as `### Response:` in its line breaks; may be empty."""
    ends = [template.prompt(Example(a, "", b))[::-1] for a, b in (("a", ""), ("b", "c"), ("d", "e"))]
    n_common = 0
    while len({end[: n_common + 1] for end in ends}) == 1 and n_common < len(ends[0]):
        n_common += 1
    return ends[0][:n_common][::-1]


def mask_is_exact(example: Example, encoded: EncodedExample, template: Template, tokenizer: Any) -> bool:
    """Whether the learnt tokens are the assistant's answers, all or the last, whole or up to where they were cut."""
    found = response_texts(encoded, tokenizer)
    wanted = [tokenizer.unprotect(response) for _, response in template.turns(example)][-len(found) :]
    if encoded.ids[-1] != tokenizer.eot_id and found:
        found[-1] = found[-1].rstrip("\ufffd")  # a character may have been cut
        wanted[-1] = wanted[-1][: len(found[-1])]
    return found == wanted


def oddities(example: Example, header: str) -> list[str]:
    """What is odd about one record, as short phrases."""
    texts = (example.instruction, example.input, example.output)
    found = []
    if example.instruction and _words(example.output) == _words(example.instruction):
        found.append("the answer repeats the instruction")
    if not re.search(r"\w", example.output):
        found.append("the answer has no letter or digit")
    if header.strip() and any(header.strip() in text for text in texts):
        found.append(f"a text contains {header.strip()!r}")
    if any(EOT in text for text in texts):
        found.append(f"a text contains {EOT!r}")
    if any(re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", text) for text in texts):
        found.append("a text has control characters")
    if example.input and example.input.strip().lower() in ("none", "n/a", "null", "nan", "no input", "<noinput>"):
        found.append("the input is a word for nothing")
    if not REFUSING.keeps(example):
        found.append("an answer begins with a refusal")
    if example.output != example.output.strip():
        found.append("the answer begins or ends with white space")
    return found


def positions_per_token(batches: Iterable[Batch]) -> float:
    """Positions that the model computes for each of the examples' own input tokens: 1.25 is 25 % padding."""
    pairs = [(batch.input_ids.numel(), batch.n_tokens) for batch in batches]
    positions, tokens = (sum(column) for column in zip(*pairs, strict=True))
    return positions / tokens


def percentiles(lengths: np.ndarray) -> dict[str, int]:
    """Least, median, 95th percentile and greatest."""
    return {
        "min": int(lengths.min()),
        "median": int(np.median(lengths)),
        "p95": int(np.percentile(lengths, 95)),
        "max": int(lengths.max()),
    }


def histogram(lengths: np.ndarray, n_bins: int = 10) -> list[tuple[int, int, int]]:
    """At most `n_bins` bins of equal, whole width as (least, greatest, number of examples)."""
    low, high = int(lengths.min()), int(lengths.max())
    width = max(1, -(-(high - low + 1) // n_bins))
    edges = np.arange(low, high + width + 1, width)
    counts, _ = np.histogram(lengths, bins=edges)
    return [(int(a), int(b) - 1, int(n)) for a, b, n in zip(edges, edges[1:], counts, strict=False)]


def warnings_of(found: Profile, layout: str, n_val: int | None) -> list[str]:
    """What usually goes wrong, where it has, each with what to do; `n_val` is None where it is not known."""
    lines = []
    if found.supervised_share < LOW_SUPERVISED:
        lines.append(
            f"only {found.supervised_share:.1%} of the targets are learnt: long prompts, short answers; "
            "check data.columns, or learn the prompt too with data.mask_prompt=false"
        )
    if not found.header.strip():
        lines.append("the template has no header before the response: the model cannot tell where its answer begins")
    elif found.header_share < 1:
        lines.append(f"{1 - found.header_share:.1%} of the prompts do not end with {found.header.strip()!r}")
    if found.mask_share < 1:
        lines.append(f"{1 - found.mask_share:.1%} of the masks do not decode to the answers: a fault of the tokenizer")
    if found.ends_share == 0:
        lines.append("no end-of-text is learnt: the model will never stop; raise data.max_length")
    elif found.truncated_share > HIGH_TRUNCATED:
        lines.append(
            f"{found.truncated_share:.0%} of the answers are cut and have no end; raise data.max_length, or leave them "
            "out with data.on_long=drop"
        )
    n_dropped = found.counts.get("n_dropped_long", 0)
    if n_dropped > HIGH_TRUNCATED * found.n_examples:
        lines.append(f"{n_dropped} examples are left out as too long; raise data.max_length")
    cost = found.costs.get(layout)
    if cost is not None and cost > 1 + HIGH_WASTE:
        best = min(found.costs, key=found.costs.__getitem__)
        lines.append(f"{cost - 1:.0%} padding with batching={layout}; batching={best} has {found.costs[best]:.2f}")
    if float(np.median(found.response_lengths)) <= 2:
        lines.append("half of the answers are a single token or none; is data.columns right?")
    if found.n_repeated_prompts > 0.05 * found.n_examples:
        lines.append(f"{found.n_repeated_prompts} prompts occur before with another answer")
    if n_val is not None and n_val < 20:
        lines.append(f"{n_val} validation examples are too few for early stopping; see data.split")
    return lines


def _words(text: str) -> Sequence[str]:
    return re.findall(r"\w+", text.lower())
