"""Undocumented parts of lm-evaluation-harness that this package uses, each with the reason.

`tests/suites/test_compat_lm_eval.py` names the part that a new version lacks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from instruct_lit.core.generation.responses import closing
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.suites.evaluated_model import EvaluatedModel

if TYPE_CHECKING:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

MAX_NEW_TOKENS = 256  # the harness's own default for tasks without a limit


def members(manager: TaskManager, name: str) -> list[str] | None:
    """The members of a tag or group, empty for a task; None for an unknown name.

    Undocumented: the fields `kind`, `tags` and `cfg` of an entry of `task_index`. The public `load` would load the
    data of all members at once, so that one missing data set fails the whole group.
    """
    entry = manager.task_index.get(name)
    if entry is None:
        return None
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    return list((entry.cfg or {}).get("task", [])) if entry.kind.name == "GROUP" else []


def dataset_of(manager: TaskManager, name: str) -> str:
    """The data set of a task as the hub names it. Undocumented: `cfg` of an entry, the only source before loading."""
    cfg = manager.task_index[name].cfg or {}
    return " ".join(str(cfg[key]) for key in ("dataset_path", "dataset_name") if cfg.get(key))


def n_examples_needed(task: Task, n_shot: int) -> int:
    """The examples that `n_shot` shots need: one more where the evaluated item itself is excluded from them.

    Undocumented: `fewshot_cfg.split`. The harness fails in the middle of a run where there are too few.
    """
    return n_shot + (task.fewshot_cfg.split == task.config.test_split)


def runs_code(task: Task) -> bool:
    """Whether a task runs what the model writes. Undocumented: `UNSAFE_CODE`."""
    return bool(getattr(task, "UNSAFE_CODE", False))


def generation_settings(arguments: dict[str, Any], stop: Sequence[str] = ()) -> SamplingSettings:
    """The settings of a `generate_until` request; `stop` is added to its own stop texts.

    Undocumented: `models.utils.normalize_gen_kwargs`, by which every model of the harness reads the task's arguments.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    given = normalize_gen_kwargs(arguments, MAX_NEW_TOKENS)
    return SamplingSettings(
        max_new_tokens=given["max_gen_toks"],
        temperature=given.get("temperature", 0.0) if given["do_sample"] else 0.0,
        top_k=given.get("top_k"),
        top_p=given.get("top_p"),
        stop=(*filter(None, given["until"]), *stop),
    )


def seeded(prompts: Sequence[str], settings: Sequence[SamplingSettings]) -> list[SamplingSettings]:
    """The settings, with a seed of its own for each repetition of a request (`repeats` of a task) that is sampled."""
    seen: Counter[tuple[str, SamplingSettings]] = Counter()
    found = []
    for request in zip(prompts, settings, strict=True):
        found.append(request[1] if request[1].is_greedy else replace(request[1], seed=seen[request]))
        seen[request] += 1
    return found


def rolling_windows(ids: Sequence[int], first: int, context_length: int) -> list[tuple[list[int], list[int]]]:
    """Pairs of context and continuation that score each token of a long text once.

    Undocumented: `utils.get_rolling_token_windows` and `utils.make_disjoint_window`, by which `HFLM` cuts texts.
    """
    from lm_eval import utils

    return [utils.make_disjoint_window(w) for w in utils.get_rolling_token_windows(list(ids), first, context_length, 1)]


def as_json(value: Any) -> Any:
    """The `default` of `json.dumps` for the harness's results. Undocumented: `utils.handle_non_serializable`."""
    from lm_eval.utils import handle_non_serializable

    return handle_non_serializable(value)


def harness_model(model: EvaluatedModel) -> TemplateLM:
    """A model for `lm_eval.simple_evaluate` with the results of `HFLM` on the bundle.

    Undocumented: `TemplateLM` calls `_loglikelihood_tokens` with token ids, which the public `loglikelihood` encodes as
    `HFLM` does; its requests are triples of texts, context ids and continuation ids.
    """
    from lm_eval.api.model import TemplateLM

    class OurModel(TemplateLM):
        tokenizer_name = "gpt2"

        @property
        def eot_token_id(self) -> int:
            return model.tokenizer.eot_id

        @property
        def prefix_token_id(self) -> int:
            start = getattr(getattr(model.tokenizer, "hf", None), "bos_token_id", None)
            return model.tokenizer.eot_id if start is None else start

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            start = model.tokenizer.prompt_start if add_special_tokens is not False else ()
            return [*start, *model.encode(string)]

        def chat_template(self, chat_template: bool | str = False) -> str:
            return model.template.text

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            return model.render(chat_history)

        def get_model_info(self) -> dict[str, Any]:
            dtype = str(model.model.head_weight.dtype)
            return {"model_num_parameters": model.model.n_parameters, "model_dtype": dtype}

        def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[Any]:
            # Of white space alone the harness makes an empty context, and of a merged token an empty continuation.
            pairs = [
                (context or [self.prefix_token_id], target or self.tok_encode(texts[1], add_special_tokens=False))
                for texts, context, target in requests
            ]
            return model.score([texts for texts, _, _ in requests], pairs)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            length = model.model.config.context_length
            windows = [rolling_windows(self.tok_encode(r.args[0]), self.prefix_token_id, length) for r in requests]
            flat = [window for of_request in windows for window in of_request]
            scores = iter(model.score(flat, flat))
            return [sum(next(scores).log_likelihood for _ in of_request) for of_request in windows]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            prompts = [request.args[0] for request in requests]
            settings = [generation_settings(request.args[1], closing(model.template)) for request in requests]
            settings = seeded(prompts, settings)
            model.expect(len(prompts))
            return model.write(prompts, settings)

    return OurModel()
