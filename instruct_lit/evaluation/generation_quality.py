"""Quality of answers during training, which early stopping, checkpoints and sweeps can monitor instead of the loss."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer

from instruct_lit.core.generation.engine import DECODE_LOOPS, Engine, WeightStore
from instruct_lit.core.generation.responses import answer
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.causal import sum_dtype
from instruct_lit.core.training.answers import share_of
from instruct_lit.core.training.loss import sum_over_ranks
from instruct_lit.errors import ConfigError
from instruct_lit.evaluation.metrics import METRICS, Row, check_metrics, concerns


class GenerationQuality(Callback):
    """Answers a fixed sample of the validation set greedily at each validation and logs `val/<metric>` means.

    The mean of `checks` is over the examples that have some; so are those of thoughts and calls, by their references.

    The sample of `n_examples` (None: all) is drawn by `seed` once, and each rank answers its share of it.

    Raises: ConfigError for an unknown metric, and for one such as `checks` that concerns no record of the sample.
    """

    def __init__(
        self,
        metrics: Sequence[str] = ("exact_match",),
        n_examples: int | None = 64,
        max_new_tokens: int = 64,
        seed: int = 0,
        max_rows: int = 32,
        dtype: str | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        check_metrics(metrics)
        self.metrics, self.n_examples, self.seed, self.max_rows = tuple(metrics), n_examples, seed, max_rows
        self.settings = SamplingSettings(max_new_tokens=max_new_tokens)
        if dtype not in (None, "bfloat16"):
            raise ConfigError(f"callbacks.generation_quality.dtype={dtype}: allowed are null, bfloat16")
        self.dtype, self.make_loops = dtype, DECODE_LOOPS if cuda_graphs else ()
        self._engine: Engine | None = None  # kept with its recorded steps

    def sample(self, indices: np.ndarray) -> np.ndarray:
        """The examples that are answered, in ascending order."""
        if self.n_examples is None or self.n_examples >= len(indices):
            return indices
        return np.sort(np.random.default_rng(self.seed).choice(indices, self.n_examples, replace=False))

    def _make_weights(self) -> type[WeightStore] | None:
        """What copies the weights in lower precision, if configured."""
        if self.dtype is None:
            return None
        from instruct_lit.accel.bf16_weights import BF16Weights

        return BF16Weights

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        store, indices = data.examples_of("val")
        chosen = self.sample(indices)
        records = [store.example(int(i)).as_record() for i in chosen]
        concerned = {name: sum(_concerns(name, record) for record in records) for name in self.metrics}
        if missing := [name for name, n in concerned.items() if not n]:
            found = f"no record of the validation sample has {missing[0]}"
            raise ConfigError(f"callbacks.generation_quality.metrics: {found}")
        share = [store.to_answer(i) for i in share_of(trainer, chosen.tolist())]
        model: Any = pl_module.model
        if self._engine is None or self._engine.model is not model:
            self._engine = Engine(model, data.tokenizer, self.max_rows, self._make_weights(), self.make_loops)
        with pl_module.sharding.gathered(model):  # type: ignore[union-attr,operator]
            rows = answer(self._engine, data.template, share, self.settings)
        if self.dtype is not None or pl_module.device.type != "cuda":
            self._engine.clear()  # nothing recorded to keep, or copies of the weights, whose memory training needs
        sums = torch.tensor(
            [sum(METRICS[name](row) for row in rows if _concerns(name, row)) for name in self.metrics],
            dtype=sum_dtype(pl_module.device),  # type: ignore[arg-type]
            device=pl_module.device,
        )
        sums = sum_over_ranks(trainer, sums)
        pl_module.log_dict(
            {f"val/{name}": value / concerned[name] for name, value in zip(self.metrics, sums, strict=True)},
            rank_zero_only=False,
        )


def _concerns(name: str, record: Row) -> bool:
    """Whether a metric concerns a record, whatever the response."""
    return concerns(name, {**record, "response": ""})
