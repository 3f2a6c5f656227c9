"""Benchmarks of lm-evaluation-harness inside other commands: their items, and what fine-tuning changed in them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import OmegaConf

from instruct_lit.config.compose import CONF, choices_of
from instruct_lit.config.provenance import weights_sha256
from instruct_lit.config.targets import plain
from instruct_lit.core.data.template import CHAT, Template
from instruct_lit.core.data.tokenizer import Tokenizer
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.errors import ConfigError
from instruct_lit.optional_imports import need

if TYPE_CHECKING:
    from instruct_lit.evaluation.forgetting import Change
    from instruct_lit.suites.harness import Tasks
    from instruct_lit.suites.suite import Suite

Values = Mapping[str, Sequence[float]]  # of the items of each task
BARE = Template("bare", "{{ instruction }}{{ response }}")


def harness_suite(key: str, name: str, limit: int | None = None) -> Suite:
    """The suite that the value of `key` names; ConfigError where it is not one of lm-evaluation-harness."""
    if name not in (names := choices_of("suite")):
        near = get_close_matches(name, names, n=1)
        raise ConfigError(f"{key}: allowed are {', '.join(names)}{f'; did you mean {near[0]}?' if near else ''}")
    from instruct_lit.suites.suite import Suite

    settings = {"tasks": (), **plain(OmegaConf.load(CONF / "suite" / f"{name}.yaml"))}
    suite = Suite(**settings | ({} if limit is None else {"limit": limit}))
    if suite.system != "lm_eval" or not suite.tasks or suite.runs_code:
        raise ConfigError(f"{key}: not a benchmark of lm-evaluation-harness, or it runs code; give another one")
    return suite


def harness_tasks(key: str, name: str, data_dir: str | None, limit: int | None = None) -> Tasks:
    """The tasks of a suite, named by the value of `key`, with their data.

    Raises: ConfigError for another name, BenchmarkError where its data are missing.
    """
    from instruct_lit.suites.harness import Tasks, harness_log
    from instruct_lit.suites.suite import BenchmarkError

    suite = harness_suite(key, name, limit)
    need("lm_eval", key, "benchmark")
    place = key.partition("=")[0]
    print(f"{place}: loading the items of {name}", flush=True)
    try:
        with harness_log(Path(os.devnull)):
            return Tasks(suite, Path(data_dir).expanduser().resolve() if data_dir else None, "error")
    except BenchmarkError as error:  # its message names the keys of `benchmark`
        text = str(error).partition(", or benchmark.on_missing")[0].removeprefix(f"suite={name}: ")
        text = text.replace("benchmark.data_dir", f"{place.rpartition('.')[0]}.data_dir")
        raise BenchmarkError(f"{key}: {text}") from error


class SmallBenchmark:
    """The benchmark of `forgetting.suite`, which a run's model answers after fine-tuning and before.

    Each is asked as it is used: the tuned model through its template, its base with the bare text, or through the
    template as well where that is the base's own chat template.

    Args:
        settings: `forgetting`; the data of its suite are loaded at once.
    """

    def __init__(self, settings: Any, cache: Path, out_dir: Path) -> None:
        self.tasks = harness_tasks(
            f"forgetting.suite={settings.suite}", settings.suite, settings.data_dir, settings.limit
        )
        self.cache, self.out_dir = cache, out_dir

    def values(self, model: CausalLM, tokenizer: Tokenizer, template: Template, is_base: bool) -> Values:
        """The items of each task, by the model as it is; the harness's files are written to `out_dir`."""
        from instruct_lit.evaluation.answer_cache import AnswerCache
        from instruct_lit.suites.evaluated_model import EvaluatedModel
        from instruct_lit.suites.harness import harness_log, item_values, run_suite
        from instruct_lit.suites.run import progress
        from instruct_lit.suites.suite import RunRequest

        mode = "off" if is_base and template.name != CHAT else "on"
        if mode == "off":
            template, tokenizer = BARE, tokenizer.without_markup()
        label = "before fine-tuning" if is_base else "after fine-tuning"
        folder = self.out_dir / "benchmark" / label.split()[0]
        folder.mkdir(parents=True, exist_ok=True)
        cache = AnswerCache(self.cache / "benchmark" / f"{weights_sha256(model.state_dict())[:16]}.jsonl")
        evaluated = EvaluatedModel(model, tokenizer, template, cache, label=label, mode=mode)
        request = RunRequest(self.tasks.suite, self.tasks.data_dir, self.cache, folder, folder / "harness.log")
        was_training = model.training
        model.eval()
        with isolate_rng(), progress(evaluated, "request"), harness_log(request.log):  # the harness sets seeds
            report = run_suite(self.tasks, evaluated, request)
        model.train(was_training)
        return item_values(folder, report, self.tasks.tasks)

    @staticmethod
    def changes(after: Values, before: Values, seed: int) -> list[Change]:
        """What fine-tuning changed in each task, paired by items."""
        from instruct_lit.evaluation.forgetting import item_change

        return [item_change(f"benchmark/{name}", after[name], before.get(name), seed) for name in after]
