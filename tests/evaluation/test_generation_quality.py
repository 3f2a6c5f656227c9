"""Quality of responses during validation: the logged values are the metrics of a fixed sample."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.responses import answer
from instruct_lit.errors import ConfigError
from instruct_lit.evaluation.generation_quality import GenerationQuality
from instruct_lit.evaluation.metrics import METRICS


def test_the_logged_means_are_those_of_the_sample(make_data: Callable, make_tuner: Callable, fit: Callable) -> None:
    quality = GenerationQuality(["token_f1", "distinct_2"], n_examples=4, max_new_tokens=5, seed=1)
    data, tuner = make_data(), make_tuner()
    trainer = fit(tuner, data, quality, limit_val_batches=1.0)
    store, indices = data.examples_of("val")
    chosen = quality.sample(indices)
    assert len(chosen) == 4 and set(chosen) < set(indices) and (quality.sample(indices) == chosen).all()
    examples = [(int(i), store.example(int(i)), store[int(i)].prompt_ids) for i in chosen]
    rows = answer(Engine(tuner.model, data.tokenizer), data.template, examples, quality.settings)
    for name in ("token_f1", "distinct_2"):
        logged = float(trainer.callback_metrics[f"val/{name}"])
        assert logged == pytest.approx(np.mean([METRICS[name](row) for row in rows]), rel=1e-6)
    assert tuner.training  # the engine has left the model as it was


def test_all_of_a_small_set_and_another_seed() -> None:
    indices = np.arange(10, 30)
    assert (GenerationQuality(n_examples=None).sample(indices) == indices).all()
    assert (GenerationQuality(n_examples=99).sample(indices) == indices).all()
    assert set(GenerationQuality(n_examples=5, seed=1).sample(indices)) != set(
        GenerationQuality(n_examples=5, seed=2).sample(indices)
    )


def test_ranks_share_the_sample(make_data: Callable, make_tuner: Callable) -> None:
    """The sums of two ranks, added up, are those of one process."""
    data, tuner = make_data(), make_tuner()
    data.prepare_data()
    data.setup()
    quality = GenerationQuality(["distinct_2"], n_examples=5, max_new_tokens=5)

    def logged(rank: int, world_size: int, others: float = 0.0) -> float:
        found: dict[str, float] = {}
        reduced = SimpleNamespace(reduce=lambda sums, reduce_op: sums + others)
        trainer = SimpleNamespace(
            sanity_checking=False, datamodule=data, global_rank=rank, world_size=world_size, strategy=reduced
        )
        module = SimpleNamespace(
            model=tuner.model,
            sharding=tuner.sharding,
            device=torch.device("cpu"),
            log_dict=lambda values, **_: found.update(values),
        )
        quality.on_validation_epoch_end(trainer, module)  # type: ignore[arg-type]
        return float(found["val/distinct_2"])

    assert logged(0, 2) + logged(1, 2) == pytest.approx(logged(0, 1))
    assert logged(0, 2, others=5 * logged(1, 2)) == pytest.approx(logged(0, 1))


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ConfigError, match="metrics=bleurt: allowed are"):
        GenerationQuality(["bleurt"])


def test_an_unsupported_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"generation_quality.dtype=float8: allowed are null, bfloat16"):
        GenerationQuality(dtype="float8")
