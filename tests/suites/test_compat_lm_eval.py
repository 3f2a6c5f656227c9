"""The undocumented parts of lm-evaluation-harness that are used: a version without one is named here."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest

from instruct_lit.suites import compat_lm_eval as compat
from instruct_lit.suites.evaluated_model import EvaluatedModel

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and what it imports

TASK = "task: {name}\ndataset_path: owner/data\ndataset_name: part\ntag: pair\n"


def test_the_harness_has_what_is_used() -> None:
    import lm_eval.api.model
    import lm_eval.api.task
    import lm_eval.models.utils
    import lm_eval.tasks
    import lm_eval.utils

    assert hasattr(lm_eval.tasks.TaskManager, "task_index"), "TaskManager.task_index is gone (members, dataset_of)"
    assert hasattr(lm_eval.models.utils, "normalize_gen_kwargs"), (
        "models.utils.normalize_gen_kwargs is gone (generation_settings)"
    )
    for name in ("get_rolling_token_windows", "make_disjoint_window", "handle_non_serializable"):
        assert hasattr(lm_eval.utils, name), f"lm_eval.utils.{name} is gone (rolling_windows, as_json)"
    template_model = lm_eval.api.model.TemplateLM
    for name in ("_loglikelihood_tokens", "prefix_token_id", "tok_encode", "apply_chat_template"):
        assert hasattr(template_model, name), f"TemplateLM.{name} is gone (harness_model)"
    assert "_loglikelihood_tokens" in inspect.getsource(template_model.loglikelihood), (
        "TemplateLM.loglikelihood does not call _loglikelihood_tokens any more (harness_model)"
    )
    assert "fewshot_cfg" in inspect.getsource(lm_eval.api.task), "Task.fewshot_cfg is gone (n_examples_needed)"


def test_tags_and_groups_are_listed_without_loading_data(tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    for name in ("b", "a"):
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name))
    (tmp_path / "all.yaml").write_text("group: all\ntask: [b, pair]\n")
    manager = TaskManager(include_defaults=False, include_path=[str(tmp_path)])
    assert compat.members(manager, "pair") == ["a", "b"] and compat.members(manager, "all") == ["b", "pair"]
    assert compat.members(manager, "a") == [] and compat.members(manager, "none") is None
    assert compat.dataset_of(manager, "a") == "owner/data part"


def test_settings_of_a_generation_task() -> None:
    settings = compat.generation_settings({"until": ["\n", ""], "max_gen_toks": 7, "temperature": 0.0}, ["###"])
    assert (settings.max_new_tokens, settings.temperature, settings.stop) == (7, 0.0, ("\n", "###"))
    sampled = compat.generation_settings({"until": [], "do_sample": True, "temperature": 0.5, "top_p": 0.9})
    assert (sampled.max_new_tokens, sampled.temperature, sampled.top_p) == (compat.MAX_NEW_TOKENS, 0.5, 0.9)


def test_each_token_of_a_long_text_is_scored_once() -> None:
    windows = compat.rolling_windows(range(1, 8), 0, 3)
    assert [token for _, continuation in windows for token in continuation] == list(range(1, 8))
    assert windows[0] == ([0], [1, 2, 3]) and all(1 <= len(context) + len(c) <= 4 for context, c in windows)


def test_results_with_arrays_and_functions_become_json() -> None:
    assert json.loads(json.dumps({"a": np.int64(3)}, default=compat.as_json)) == {"a": 3}


def test_the_model_encodes_as_the_template_says(evaluated: EvaluatedModel) -> None:
    model = compat.harness_model(evaluated)
    assert model.tok_encode("Hello") == evaluated.tokenizer.encode("Hello")
    assert model.eot_token_id == model.prefix_token_id == evaluated.tokenizer.eot_id
