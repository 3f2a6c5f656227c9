"""Filters by quality: perplexity and instruction-following difficulty under the base model, a judge, diversity.

They need all examples at once, and cache what is expensive by the examples, the model and the settings.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from instruct_lit.core.data.datamodule import InstructionData
from instruct_lit.core.data.encode import EncodedExample, Encoder
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.records import without_duplicates
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import Tokenizer
from instruct_lit.core.model.causal import CausalLM, best_device, on_device
from instruct_lit.datasets.filters import Filter, FilterChain
from instruct_lit.errors import ConfigError

MAX_TOKENS = 4096  # of one forward pass
N_EXPLAINED = 3  # dropped examples that an explanation shows
# The mean loss of each example's response tokens in nats, and their number.
Losses = Callable[[CausalLM, Tokenizer, Sequence[EncodedExample]], Sequence[tuple[float, int]]]


@dataclass(frozen=True)
class Base:
    """The model that a run starts from, with how it sees an example."""

    identity: str  # changes with the weights
    open: Callable[[], CausalLM]  # called where the cache has no scores
    losses: Losses
    template: Template
    tokenizer: Tokenizer
    max_length: int
    cache_dir: Path

    def encode(self, example: Example) -> EncodedExample | None:
        """The tokens of an example, its last response marked; None where the context has no room for a response."""
        encoder = Encoder(self.template, self.tokenizer, self.max_length, loss_on="last")
        found = next((encoded for _, encoded in encoder.encode([example])), None)
        return found if found is not None and found.spans else None

    @property
    def key(self) -> list[Any]:
        """What scores depend on beside the example."""
        texts = [self.template.text, self.template.next_turn and self.template.next_turn.text]
        return [self.identity, *texts, self.tokenizer.fingerprint, self.max_length]


class QualityFilter(Filter):
    """A filter that decides about all examples together; `explanation` has lines about its last decision."""

    base: Base  # given by the configuration
    explanation: Sequence[str] = ()

    def fingerprint(self) -> str:
        own = {k: v for k, v in vars(self).items() if not k.startswith("_") and k not in BESIDE}
        return f"{self.name} {json.dumps([own, self._key()])}"

    def decide(self, examples: Iterable[Example]) -> Iterator[tuple[Example, bool]]:
        together = list(examples)
        yield from zip(together, self.choose(together), strict=True)

    def choose(self, examples: Sequence[Example]) -> Sequence[bool]:
        """Whether each example is kept."""
        raise NotImplementedError

    def _key(self) -> list[Any]:
        return self.base.key

    def _cached(self, examples: Sequence[Example], compute: Callable[[], list[Any]], *settings: Any) -> list[Any]:
        """What `compute` gives for these examples and settings, from the cache where it has been computed."""
        records = json.dumps([example.as_record() for example in examples], default=str)
        facts = f"{self.name} {json.dumps([*self._key(), *settings])} {records}"
        key = hashlib.sha256(facts.encode()).hexdigest()[:16]
        file = self.base.cache_dir / "quality" / f"{self.name}-{key}.json"
        if file.is_file():
            return json.loads(file.read_text())
        print(f"data.filters.{self.name}: scoring {len(examples):,} examples", flush=True)
        found = compute()
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(found))
        os.replace(temporary, file)
        return found


BESIDE = ("base", "explanation", "ask")  # attributes that are no settings


class ScoreFilter(QualityFilter):
    """Keeps examples with a score between `min` and `max`, and of these the ones between two percentiles.

    An example without a score (too long for a response, an unreadable verdict) is kept.
    """

    def __init__(
        self, min: float | None = None, max: float | None = None, percentiles: Sequence[float] = (0, 100)
    ) -> None:
        low, high = percentiles if len(percentiles) == 2 else (1, 0)
        if not 0 <= low < high <= 100 or (min is not None and max is not None and min > max):
            raise ConfigError(
                f"data.filters.{self.name}: min={min}, max={max}, percentiles={list(percentiles)}; give min up to max, "
                "and two percentiles from 0 to 100 in their order"
            )
        self.min, self.max, self.percentiles = min, max, (low, high)

    def scores(self, examples: Sequence[Example]) -> list[float | None]:
        """The score of each example, None where it has none."""
        raise NotImplementedError

    def choose(self, examples: Sequence[Example]) -> Sequence[bool]:
        scores = self._cached(examples, lambda: self.scores(examples))
        found = np.array([math.nan if score is None else score for score in scores], dtype=np.float64)
        low = -math.inf if self.min is None else self.min
        high = math.inf if self.max is None else self.max
        within = found[(found >= low) & (found <= high)]
        if len(within):
            low, high = np.percentile(within, self.percentiles)
        kept = ~((found < low) | (found > high))
        self.explanation = self._explained(examples, found, kept)
        return kept.tolist()

    def _explained(self, examples: Sequence[Example], scores: np.ndarray, kept: np.ndarray) -> list[str]:
        known = scores[~np.isnan(scores)]
        lines = [f"{self.name}: {int(kept.sum()):,} of {len(examples):,} kept"]
        if len(known):
            of_all = ", ".join(f"{np.percentile(known, p):.3g} ({p} %)" for p in (0, 5, 50, 95, 100))
            of_kept = scores[kept & ~np.isnan(scores)]
            between = f"; those kept have {of_kept.min():.3g} to {of_kept.max():.3g}" if len(of_kept) else ""
            lines[0] += f"; percentiles of the score {of_all}{between}"
        if n_unknown := len(scores) - len(known):
            lines[0] += f"; {n_unknown:,} without a score are kept"
        dropped = sorted(np.flatnonzero(~kept).tolist(), key=lambda i: scores[i])
        ends = dropped if len(dropped) <= 2 * N_EXPLAINED else [*dropped[:N_EXPLAINED], *dropped[-N_EXPLAINED:]]
        return lines + [f"  dropped, {scores[i]:.3g}: {_short(examples[i])}" for i in ends]


class Perplexity(ScoreFilter):
    """Keeps examples by the perplexity of their last response under the base model."""

    name = "perplexity"

    def scores(self, examples: Sequence[Example]) -> list[float | None]:
        return [None if loss is None else math.exp(min(loss, 700)) for loss in _losses(self.base, examples)[0]]


class InstructionDifficulty(ScoreFilter):
    """Keeps examples by the loss of their last response with its prompt, divided by that of the response alone.

    Above 1 the prompt is of no help. Source: Li et al. 2023, "From Quantity to Quality" (IFD).
    """

    name = "ifd"

    def scores(self, examples: Sequence[Example]) -> list[float | None]:
        pairs = zip(*_losses(self.base, examples, alone=True), strict=True)
        return [None if loss is None or not alone else loss / alone for loss, alone in pairs]


class JudgeScore(ScoreFilter):
    """Keeps examples by the score that a judge gives their response; a verdict that cannot be read is no score.

    Args:
        judge: a name of `judge`: ollama, openai, local.
        settings: keys of this group, such as `model`.
    """

    name = "judge"
    # The scores of records with `response`, by a judge with these settings; the configuration provides this function.
    ask: Callable[[str, Mapping[str, Any], Sequence[dict[str, Any]]], list[float | None]]

    def __init__(
        self,
        judge: str,
        settings: Mapping[str, Any] | None = None,
        min: float | None = None,
        max: float | None = None,
        percentiles: Sequence[float] = (0, 100),
    ) -> None:
        super().__init__(min, max, percentiles)
        self.judge, self.settings = judge, dict(settings or {})

    def scores(self, examples: Sequence[Example]) -> list[float | None]:
        rows = [{"input": "", **e.as_record(), "response": e.output, "output": ""} for e in examples]
        return self.ask(self.judge, self.settings, rows)

    def _key(self) -> list[Any]:
        return [self.judge, self.settings]


class Diversity(QualityFilter):
    """Keeps `n` examples, or the share `share`, that cover the data set: each is the farthest from those chosen before.

    Examples are the mean of the base model's last states over their tokens, less the mean of all, with the cosine
    distance. Source: Sener and Savarese 2018 (k-center greedy). The first is the one nearest to the mean.
    """

    name = "diversity"

    def __init__(self, n: int | None = None, share: float | None = None) -> None:
        if (n is None) == (share is None) or (n is not None and n < 1) or (share is not None and not 0 < share <= 1):
            raise ConfigError(f"data.filters.diversity: n={n}, share={share}; give n of at least 1, or a share up to 1")
        self.n, self.share = n, share

    def choose(self, examples: Sequence[Example]) -> Sequence[bool]:
        n = min(len(examples), self.n if self.n is not None else max(1, round((self.share or 1) * len(examples))))
        if n == len(examples):
            return [True] * n
        n_ordered = min(len(examples), n + N_EXPLAINED)
        order, distances = self._cached(
            examples, lambda: farthest_first(embeddings(self.base, examples), n_ordered), n_ordered
        )
        chosen = set(order[:n])
        kept = [number in chosen for number in range(len(examples))]
        self.explanation = [
            f"diversity: {n:,} of {len(examples):,} kept; every other one is within a cosine distance of "
            f"{distances[n]:.3g} of one of them",
            *(f"  dropped, {distances[n + place]:.3g}: {_short(examples[i])}" for place, i in enumerate(order[n:])),
        ]
        return kept


def explanations(data: InstructionData) -> list[str]:
    """What the filters by quality of a data module did, with their scores out of the cache."""
    chain = data.filters
    if not isinstance(chain, FilterChain) or not any(isinstance(filter, QualityFilter) for filter in chain.filters):
        return []
    lines = []
    for source in data.sources:
        for _ in chain(without_duplicates(source, {})):
            pass
        lines += [line for filter in chain.filters for line in getattr(filter, "explanation", ())]
    return lines


def farthest_first(vectors: np.ndarray, n: int) -> list[list[Any]]:
    """The first `n` rows of an order in which each is the farthest from those before, and its distance to them."""
    centred = vectors - vectors.mean(axis=0)
    units = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    order, distances = [int(np.linalg.norm(centred, axis=1).argmin())], [2.0]
    nearest = np.full(len(units), np.inf)
    while len(order) < n:
        nearest = np.minimum(nearest, 1 - units @ units[order[-1]])
        nearest[order[-1]] = -np.inf
        order.append(int(nearest.argmax()))
        distances.append(float(nearest[order[-1]]))
    return [order, distances]


@torch.inference_mode()
def embeddings(base: Base, examples: Sequence[Example]) -> np.ndarray:
    """The mean of the model's last states over the tokens of each example `(n, d)`; 0 for one that does not fit."""
    ids = {i: encoded.ids for i, e in enumerate(examples) if (encoded := base.encode(e)) is not None}
    order = sorted(ids, key=lambda i: len(ids[i]))
    with _evaluating(base) as model:
        found = np.zeros((len(examples), model.head_weight.shape[1]), dtype=np.float32)
        while order:
            size = max(1, MAX_TOKENS // len(ids[order[-1]]))
            group, order = order[-size:], order[:-size]
            lengths = torch.tensor([len(ids[i]) for i in group])
            # No token sees the padding after it.
            rows = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(ids[i]) for i in group], batch_first=True)
            states = model.hidden_states(rows.to(model.head_weight.device)).float().cpu()
            mask = (torch.arange(rows.shape[1])[None] < lengths[:, None])[..., None]
            found[group] = ((states * mask).sum(1) / lengths[:, None]).numpy()
    return found


@contextmanager
def _evaluating(base: Base) -> Iterator[CausalLM]:
    """The open model on the best device, without dropout."""
    model = base.open()
    was_training = model.training
    try:
        with on_device(model, best_device()):
            yield model.eval()
    finally:
        model.train(was_training)


def _losses(base: Base, examples: Sequence[Example], alone: bool = False) -> list[list[float | None]]:
    """The mean loss of each example's last response after its prompt, and with `alone` of the response by itself."""
    encoded = [base.encode(example) for example in examples]
    found = [encoded]
    if alone:
        found.append([one and _alone(one, base.tokenizer.eot_id) for one in encoded])
    columns = []
    with _evaluating(base) as model:
        for column in found:
            losses = iter(base.losses(model, base.tokenizer, [one for one in column if one is not None]))
            columns.append([None if one is None else next(losses)[0] for one in column])
    return columns


def _alone(encoded: EncodedExample, eot_id: int) -> EncodedExample:
    """The last response after an end-of-text, all its tokens supervised."""
    start, end = encoded.spans[-1]
    ids = np.concatenate([[eot_id], encoded.ids[start:end]])
    return EncodedExample(encoded.index, ids, np.arange(len(ids)) > 0)


def _short(example: Example) -> str:
    return repr(" ".join(f"{example.instruction} {example.input}".split())[:60])


QUALITY: dict[str, type[Filter]] = {f.name: f for f in (Perplexity, InstructionDifficulty, JudgeScore, Diversity)}
