"""The filters of `data.filters` from a configuration, with the base model and the benchmark items that some need."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from instruct_lit.config.model_builders import model_of
from instruct_lit.config.targets import construct, plain
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import Tokenizer
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.errors import ConfigError

if TYPE_CHECKING:
    from instruct_lit.datasets.filters import FilterChain
    from instruct_lit.datasets.quality import Base


def filters_of(node: DictConfig | None, base: Callable[[], Base] | None = None) -> FilterChain | None:
    """The filters of `data.filters`, in its order.

    Args:
        base: makes what filters by quality need of the run's base model.

    Raises: ConfigError for an unknown filter or argument.
    """
    if not node:
        return None
    from instruct_lit.datasets.filters import FILTERS, FilterChain, Leaks
    from instruct_lit.datasets.quality import QUALITY, JudgeScore, QualityFilter

    known = FILTERS | QUALITY
    Leaks.suite_items = staticmethod(suite_items)  # type: ignore[method-assign]
    filters = []
    for name, given in plain(node).items():
        key = f"data.filters.{name}"
        if name not in known:
            raise ConfigError(f"{key}: allowed are {', '.join(known)}")
        if given is None:  # disabled
            continue
        filters.append(construct(known[name], given, key))
        if isinstance(filters[-1], QualityFilter):
            assert base is not None
            filters[-1].base = base()
        if isinstance(filters[-1], JudgeScore):
            from instruct_lit.config.judge_builders import scores_of

            filters[-1].ask = partial(scores_of, str(filters[-1].base.cache_dir))
    return FilterChain(filters) if filters else None


def base_of_filters(
    config: DictConfig, template: Template, tokenizer: Tokenizer, context_length: int, model: CausalLM | None
) -> Base:
    """The model that a run starts from, for filters by quality: `model` where it is open, otherwise that of its group.

    It is identified by the group's settings and the files of a local folder, so that cached scores load nothing.
    """
    from instruct_lit.datasets.quality import Base
    from instruct_lit.evaluation.losses import response_losses

    group = config.get("model")
    if group is None:
        needed = "filters by quality need the base model of a run"
        raise ConfigError(f"data.filters: {needed}; give run=…, or leave them out")
    facts = {key: value for key, value in plain(group).items() if key not in ("name", "trust_remote_code")}
    folder = Path(str(group.get("path"))).expanduser()
    files = [file for file in sorted(folder.glob("*")) if file.suffix in (".safetensors", ".gguf", ".bin")]
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    identity = json.dumps([facts, states, None if group.pretrained else config.get("seed")])

    def opened() -> CausalLM:
        return model if model is not None else model_of(OmegaConf.create({**config, "adapter": None}))

    max_length = config.data.max_length or context_length
    return Base(identity, opened, response_losses, template, tokenizer, max_length, Path(config.paths.cache))


def suite_items(name: str, data_dir: str | None) -> list[str]:
    """The items of a benchmark of lm-evaluation-harness as it renders them, and their first lines where these differ.

    Raises: ConfigError for another name, BenchmarkError where its data are missing.
    """
    from instruct_lit.config.benchmark_builders import harness_tasks
    from instruct_lit.datasets.leaks import MIN_WORDS

    tasks = harness_tasks(f"data.filters.leaks.suites=[{name}]", name, data_dir)
    items = [text for of_task in tasks.texts(tasks.suite.limit).values() for text in of_task]
    lines = Counter(text.partition("\n")[0] for text in items)  # a question without its choices
    return items + [line for line, n in lines.items() if n == 1 and len(line.split()) >= MIN_WORDS]
