"""What a run's model has forgotten of its base, measured after fine-tuning and before by the group `forgetting`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng

from instruct_lit.config.provenance import answer_key
from instruct_lit.config.satellites import has_satellite
from instruct_lit.core.data.template import CHAT, Template
from instruct_lit.core.data.tokenizer import Tokenizer
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.evaluation.answer_cache import AnswerCache
from instruct_lit.evaluation.forgetting import Change, Losses, change, general_texts, item_change, text_losses

Measured = tuple[Losses, Mapping[str, Sequence[float]]]  # of the general texts, and of the items of each task


class ForgettingProbe:
    """General texts, and the benchmark of `forgetting.suite`, which a run's model meets after fine-tuning and before.

    The benchmark is asked as each is used: the tuned model through its template, its base with the bare text, or
    through the template as well where that is the base's own chat template.

    Args:
        settings: `forgetting`; its texts and the data of its suite are loaded at once.
        base: the group `model` that the model started from; None: unknown.
    """

    def __init__(self, settings: Any, base: Any, cache: Path, seed: int) -> None:
        of_nano = base is not None and base.get("name") == "nano" and has_satellite("datasets")
        self.texts = general_texts(settings.path, settings.n_texts, of_nano)
        self.cache, self.seed, self.tasks = cache, seed, None
        if settings.suite is not None:
            from instruct_lit.config.benchmark_builders import harness_tasks

            key = f"forgetting.suite={settings.suite}"
            self.tasks = harness_tasks(key, settings.suite, settings.data_dir, settings.limit)

    def measured(
        self, model: CausalLM, tokenizer: Tokenizer, template: Template, out_dir: Path, is_base: bool = False
    ) -> Measured:
        """The loss of each text, and the values of the benchmark's items, whose files are written to `out_dir`."""
        losses = text_losses(model, tokenizer, self.texts)
        if self.tasks is None:
            return losses, {}
        from instruct_lit.config.benchmark_builders import BARE
        from instruct_lit.suites.evaluated_model import EvaluatedModel
        from instruct_lit.suites.harness import harness_log, item_values, run_suite
        from instruct_lit.suites.run import progress
        from instruct_lit.suites.suite import RunRequest

        mode = "off" if is_base and template.name != CHAT else "on"
        if mode == "off":
            template, tokenizer = BARE, tokenizer.without_markup()
        label = "before fine-tuning" if is_base else "after fine-tuning"
        folder = out_dir / "benchmark" / label.split()[0]
        folder.mkdir(parents=True, exist_ok=True)
        cache = AnswerCache(self.cache / "benchmark" / f"{answer_key(model, tokenizer)}.jsonl")
        evaluated = EvaluatedModel(model, tokenizer, template, cache, label=label, mode=mode)
        request = RunRequest(self.tasks.suite, self.tasks.data_dir, self.cache, folder, folder / "harness.log")
        was_training = model.training
        model.eval()
        with isolate_rng(), progress(evaluated, "request"), harness_log(request.log):  # the harness sets seeds
            report = run_suite(self.tasks, evaluated, request)
        model.train(was_training)
        return losses, item_values(folder, report, self.tasks.tasks)

    def changes(self, after: Measured, before: Measured | None) -> list[Change]:
        """What fine-tuning changed in the texts' loss and in each task, paired by texts and by items."""
        losses, values = before or (None, {})
        return [
            change("general/loss", after[0], losses, self.seed),
            *(item_change(f"benchmark/{name}", after[1][name], values.get(name), self.seed) for name in after[1]),
        ]
