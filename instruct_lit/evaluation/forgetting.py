"""Forgetting: the loss of a fixed sample of general text and the items of a benchmark, after fine-tuning and before."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from instruct_lit.core.data.encode import EncodedExample
from instruct_lit.core.data.tokenizer import Tokenizer
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.errors import ConfigError
from instruct_lit.evaluation.losses import response_losses
from instruct_lit.evaluation.metrics import higher_is_better
from instruct_lit.evaluation.statistics import interval, paired_interval

SHIPPED = Path(__file__).with_name("general_text.txt")  # written for this package, under its licence (Apache-2.0)
NANO_SEED = 2  # of documents that nano was not trained on
MAX_TOKENS = 512  # of a text
Losses = Sequence[tuple[float, int]]  # of each text the mean loss of its tokens in nats, and their number

# What fine-tuning changed: `metric`, the interval `after`, and where known `before`, `change` and `verdict`.
Change = dict[str, Any]


def general_texts(path: str | Path | None, n_texts: int, of_nano: bool = False) -> list[str]:
    """The first `n_texts` paragraphs, separated by empty lines, of a file.

    Args:
        path: None: the shipped file, or for the nano base new documents of its own kind, since it knows no other text.

    Raises: ConfigError where the file is not UTF-8, or has no text.
    """
    if path is None and of_nano:
        from instruct_lit.datasets.plain_text import document

        random = Random(NANO_SEED)
        return [document(random) for _ in range(n_texts)]
    file = Path(path or SHIPPED).expanduser()
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"forgetting.path={file}: cannot be read as UTF-8 text ({reason})") from error
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    if not paragraphs:
        raise ConfigError(f"forgetting.path={file}: it has no text; give paragraphs separated by empty lines")
    return paragraphs[:n_texts]


def text_losses(model: CausalLM, tokenizer: Tokenizer, texts: Sequence[str]) -> list[tuple[float, int]]:
    """Mean loss in nats and number of tokens of each text, which begins after an end-of-text.

    Texts are cut at `MAX_TOKENS` tokens or the model's context length.
    """
    longest = min(MAX_TOKENS, model.config.context_length)
    examples = []
    for i, text in enumerate(texts):
        ids = np.array([tokenizer.eot_id, *tokenizer.encode(text)][: longest + 1], dtype=np.int32)
        examples.append(EncodedExample(i, ids, np.arange(len(ids)) > 0))
    return response_losses(model, tokenizer, examples)


def change(metric: str, after: Losses, before: Losses | None, seed: int = 0) -> Change:
    """A mean loss per token `after` and `before` fine-tuning, and their paired `change`, with intervals over texts."""
    values = [None if side is None else [loss for loss, _ in side] for side in (after, before)]
    return item_change(metric, values[0] or [], values[1], seed, [n for _, n in after])


def item_change(
    metric: str,
    after: Sequence[float],
    before: Sequence[float] | None,
    seed: int = 0,
    weights: Sequence[float] | None = None,
) -> Change:
    """As `change`, of values with weights, or of a benchmark's items."""
    found: Change = {"metric": metric, "after": interval(after, seed, weights)}
    if before is not None:
        found["before"] = interval(before, seed, weights)
        changes = np.array(after) - np.array(before)
        of_items = weights is None
        found["change"] = paired_interval(changes, seed) if of_items else interval(changes.tolist(), seed, weights)
        found["verdict"] = verdict(metric, found["change"])
    return found


def verdict(metric: str, change: Mapping[str, Any]) -> str:
    """Whether a change is `gained`, `lost`, or not clear by its interval; empty for a metric without a direction."""
    is_better_higher = higher_is_better(metric)
    if is_better_higher is None or change["low"] is None:
        return ""
    if change["low"] <= 0 <= change["high"]:
        return "no clear difference"
    return "gained" if (change["low"] > 0) is is_better_higher else "lost"


def as_metrics(found: Change) -> dict[str, Any]:
    """The figures of `change` under the names of `metrics.json`."""
    name = found["metric"]
    metrics = {name: found["after"]["mean"]}
    if "change" in found:
        metrics |= {f"base/{name}": found["before"]["mean"], f"{name}_change": found["change"]["mean"]}
        ends = [side for side in ("low", "high") if found["change"][side] is not None]  # none for few texts
        metrics |= {f"{name}_change_{side}": found["change"][side] for side in ends}
    return metrics
