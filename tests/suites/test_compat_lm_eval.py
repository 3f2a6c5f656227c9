"""The undocumented parts of lm-evaluation-harness that are used: a version without one is named here."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest

from instruct_lit.core.bundle import save_bundle
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.gpt import GPT
from instruct_lit.suites import compat_lm_eval as compat
from instruct_lit.suites.evaluated_model import EvaluatedModel
from instruct_lit.suites.suite import BenchmarkError

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


def test_the_description_of_a_task_is_the_system_prompt_as_in_the_bundle(tmp_path: Path, model: GPT) -> None:
    transformers = pytest.importorskip("transformers")
    template = Template("own", "{{ system or 'Answer.' }}\n\nQ: {{ instruction }}\nA: {{ response }}")
    save_bundle(
        tmp_path,
        model,
        GPT2Tokenizer(),
        template,
        {"max_new_tokens": 9, "temperature": 0.0, "top_k": None, "top_p": None, "repetition_penalty": 1.0},
        {},
    )
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for described in ([{"role": "system", "content": "About anatomy."}], []):
        messages = [*described, {"role": "user", "content": "Which bone?"}]
        rendered = EvaluatedModel(model, GPT2Tokenizer(), template).render(messages)
        assert rendered == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert rendered == f"{'About anatomy.' if described else 'Answer.'}\n\nQ: Which bone?\nA: "


def test_each_repetition_of_a_sampled_request_has_its_own_seed() -> None:
    """Otherwise a majority vote over 64 answers would be one over 64 times the same."""
    sampled, greedy = SamplingSettings(temperature=0.2), SamplingSettings()
    found = compat.seeded(["a", "a", "b", "a", "a"], [sampled, sampled, sampled, sampled, greedy])
    assert [settings.seed for settings in found] == [0, 1, 0, 2, 0]


def test_blank_contexts_and_merged_continuations_do_not_move_other_scores(evaluated: EvaluatedModel) -> None:
    from lm_eval.api.instance import Instance

    def scores(*pairs: tuple[str, str]) -> list[tuple[float, bool]]:
        requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        return compat.harness_model(evaluated).loglikelihood(requests)

    alone = scores(("The cat", " sat")), scores(("", " x"))
    together = scores((" ", "x"), ("The cat", " sat"), ("", " x"), ("In", "stead"))
    assert together[0] == together[2] and together[:2] == [alone[1][0], alone[0][0]]
    assert evaluated.tokenizer.encode("Instead") == [evaluated.tokenizer.encode("Instead")[0]]
    assert together[3][0] < 0  # one token, which the context is a part of
    with pytest.raises(BenchmarkError, match=r"suite.tasks: a choice has \d+ tokens, the model's context 512; leave"):
        scores(("The cat", " sat" * 600))


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
