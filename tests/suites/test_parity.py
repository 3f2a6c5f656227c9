"""Parity with the harness's own `HFLM` on the bundle: log-likelihoods, responses and every figure."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from instruct_lit.config.compose import CONF
from instruct_lit.core.bundle import open_model
from instruct_lit.core.data.template import Template
from instruct_lit.suites.compat_lm_eval import harness_model
from instruct_lit.suites.evaluated_model import EvaluatedModel
from instruct_lit.suites.harness import Tasks, local_data
from instruct_lit.suites.suite import Suite
from tests.suites.literal_items import LITERAL, literal_hub

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of the harness and what it imports
    pytest.mark.usefixtures("no_survey"),
]


@pytest.fixture
def no_survey(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness describes the machine in every result, which takes it longer than the tasks here."""
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


def suite_of(name: str, **changes: Any) -> Suite:
    settings = OmegaConf.to_container(OmegaConf.load(CONF / "suite" / f"{name}.yaml"))
    assert isinstance(settings, dict)
    return Suite(**{**settings, **changes})


def results_of(model: Any, tasks: Tasks, template: bool, n_shot: int | None, limit: int) -> dict[str, Any]:
    import lm_eval

    with local_data(tasks.data_dir):
        return lm_eval.simple_evaluate(
            model=model, tasks=list(tasks.tasks.values()), task_manager=tasks.manager, num_fewshot=n_shot, limit=limit,
            apply_chat_template=template, fewshot_as_multiturn=False, bootstrap_iters=0, confirm_run_unsafe_code=True,
        )  # fmt: skip


def assert_equal(
    tasks: Tasks, evaluated: EvaluatedModel, theirs: Any, template: bool, n_shot: int | None, limit: int
) -> int:
    ours = results_of(harness_model(evaluated), tasks, template, n_shot, limit)
    expected = results_of(theirs, tasks, template, n_shot, limit)
    n_compared = 0
    for name, rows in expected["samples"].items():
        for row, ours_row in zip(rows, ours["samples"][name], strict=True):
            assert ours_row["arguments"] == row["arguments"]
            for (answer,), (our_answer,) in zip(row["resps"], ours_row["resps"], strict=True):
                if isinstance(answer, str):
                    assert our_answer == answer, name
                else:
                    assert our_answer[0] == pytest.approx(answer[0], abs=1e-4), name
                    assert our_answer[1] == answer[1]
                n_compared += 1
        for metric, value in expected["results"][name].items():
            assert ours["results"][name][metric] == (
                value if isinstance(value, str) else pytest.approx(value, abs=1e-5)
            )
    return n_compared


def shorten(tasks: Tasks) -> None:
    """Ask for short answers: HFLM refuses such as are as long as a small model's context."""
    for task in tasks.tasks.values():
        if task.OUTPUT_TYPE == "generate_until":
            task.set_config("generation_kwargs", {"max_gen_toks": 32}, update=True)


@pytest.mark.parametrize(
    ("names", "template"),
    [
        (["copa", "squad_v1", "mmlu_anatomy"], True),  # a description has no place in the template
        pytest.param(["mmlu_anatomy", "copa", "stsb", "record", "squad_v1", "triviaqa"], False, marks=pytest.mark.slow),
    ],
)
def test_some_tasks_of_every_kind(
    hub: Path, evaluated: EvaluatedModel, theirs: Any, names: list[str], template: bool
) -> None:
    tasks = Tasks(Suite("mix", names, ["mmlu/default", "super_glue/copa", "triviaqa"]), hub, "error")
    assert assert_equal(tasks, evaluated, theirs, template, n_shot=2, limit=2) > 5
    assert evaluated.n_cut > 0  # the context is short, so both cut from the left


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mmlu", "glue", "superglue", "bigbench", "squad", "triviaqa", "humaneval", "quick"])
def test_every_task_with_real_items(hub: Path, evaluated: EvaluatedModel, theirs: Any, name: str) -> None:
    suite = suite_of(name)
    tasks = Tasks(suite, hub, "skip")
    assert len(tasks.tasks) == {"mmlu": 57, "glue": 9, "superglue": 8, "bigbench": 30, "quick": 9}.get(name, 1)
    shorten(tasks)
    assert assert_equal(tasks, evaluated, theirs, False, suite.n_shot, limit=6) > 0


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "hellaswag")) for name in LITERAL]
)
def test_every_suite_with_literal_items(tmp_path: Path, evaluated: EvaluatedModel, theirs: Any, name: str) -> None:
    pytest.importorskip("immutabledict")
    suite = suite_of(name)
    tasks = Tasks(suite, literal_hub(tmp_path, *LITERAL[name]), "skip")
    assert len(tasks.tasks) == {"arc": 2, "truthfulqa": 2, "mmlu_pro": 14}.get(name, 1)
    shorten(tasks)
    assert assert_equal(tasks, evaluated, theirs, False, min(1, suite.n_shot or 0), limit=2) >= 2


@pytest.mark.slow
def test_rolling_log_likelihoods(evaluated: EvaluatedModel, theirs: Any, shared_data: Path) -> None:
    from lm_eval.api.instance import Instance

    texts = ["A short text.", (shared_data / "mmlu" / "README.txt").read_text() * 3]  # the second in several windows
    requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    ours = harness_model(evaluated).loglikelihood_rolling(requests)
    assert ours == pytest.approx(theirs.loglikelihood_rolling(requests), rel=1e-5)


def test_other_architectures_too(llama_directory: Path, hub: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    opened = open_model(llama_directory, Template("bare", "{{ instruction }}{{ response }}"))
    theirs = HFLM(
        pretrained=transformers.AutoModelForCausalLM.from_pretrained(llama_directory),
        tokenizer=transformers.AutoTokenizer.from_pretrained(llama_directory), batch_size=2, device="cpu",
    )  # fmt: skip
    evaluated = EvaluatedModel(opened.model, opened.tokenizer.without_markup(), opened.template)
    names = ["mmlu_anatomy", "copa", "boolq", "stsb", "squad_v1", "triviaqa"]
    tasks = Tasks(
        Suite("mix", names, ["mmlu/default", "super_glue/copa", "super_glue/boolq", "triviaqa"]), hub, "error"
    )
    shorten(tasks)
    assert assert_equal(tasks, evaluated, theirs, False, n_shot=1, limit=2) == 32
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood", {}, ("", text), i) for i, text in enumerate(("The cat", "and the dog"))]
    ours = harness_model(evaluated)
    assert [a for a, _ in ours.loglikelihood(requests)] == pytest.approx([a for a, _ in theirs.loglikelihood(requests)])
    rolling = [Instance("loglikelihood_rolling", {}, ("the cat and the dog",), 0)]
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(theirs.loglikelihood_rolling(rolling))
    assert ours.prefix_token_id == theirs.prefix_token_id != ours.eot_token_id
