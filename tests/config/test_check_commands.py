"""Relations between the keys of the commands beside training."""

import re

import pytest

from instruct_lit.config.check_commands import check_command
from instruct_lit.config.response_builders import check_by
from instruct_lit.errors import ConfigError
from tests.configs import composed


@pytest.mark.parametrize(
    ("command", "key"),
    [("evaluate", "compare"), ("evaluate", "run"), ("benchmark", "run"), ("arena", "runs"), ("export", "soup"),
     ("report", "runs"), ("review", "run")],
)  # fmt: skip
def test_a_run_is_given_once(command: str, key: str) -> None:
    for again in ("./a", "a/bundle"):
        with pytest.raises(ConfigError, match=rf"{key}=\[…,{re.escape(again)}\]: given twice; give each once"):
            check_command(command, composed(command, f"{key}=[a,b,{again}]"))


def test_a_category_that_no_record_has_is_refused_before_the_responses() -> None:
    records = [{"instruction": "a", "output": "b", "family": "c"}]
    check_by(composed("evaluate", "run=a", "by=[family,input,length,finish_reason]"), records)
    with pytest.raises(ConfigError, match="by=famly: no record has such a field; allowed are length, family, finish"):
        check_by(composed("evaluate", "run=a", "by=[famly]"), records)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["by=[family]"], "by=['family']: figures by field are of one model's responses; give one run"),
        (["leaks.train=pyproject.toml"], "leaks.train=pyproject.toml: leaks are searched for one model; give one run"),
        (["n_responses=1"], "n_responses=1: models are compared on two or more examples"),
        (
            ["judge=openai", "judge.model=m", "judge.api_key_env=null", "judge.calibrate=pyproject.toml"],
            "judge.calibrate=pyproject.toml: for scores; two models are compared without any",
        ),
    ],
)
def test_what_a_comparison_does_not_use_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_command("evaluate", composed("evaluate", "compare=[pyproject.toml,README.md]", *overrides))
    assert message in str(refused.value)


def test_battles_that_are_missing_are_refused_by_their_key() -> None:
    config = composed("benchmark", "suite=arena", "suite.options.battles=nowhere.jsonl")
    with pytest.raises(ConfigError, match=r"suite.options.battles=nowhere.jsonl: no such file"):
        check_command("benchmark", config)


def test_evaluate_checks_its_data() -> None:
    with pytest.raises(ConfigError, match=r"data.split=null: allowed are 'book' and a mapping of train, val and test"):
        check_command("evaluate", composed("evaluate", "responses=pyproject.toml", "data=demo", "data.split=null"))


def test_peek_checks_the_model_that_it_opens() -> None:
    with pytest.raises(ConfigError, match=r"model.path=null: give a hub id or a folder \(model=hf\)"):
        check_command("peek", composed("peek", "model=hf"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["template=alpaca", "template.path=x"], "template.path=x: template=alpaca has a text of its own; use template=file"),
        (["template=alpaca", "template.variables={a: 1}"], "template.variables={a: 1}: requires template=chat"),
        (["template=chat", "template.text=x"], "template.text=x: the text is that of the tokenizer; use template=file"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["train", "chat"])
def test_keys_of_a_template_are_read_or_refused(command: str, overrides: list[str], message: str) -> None:
    config = composed(command, *overrides, *(["model=hf", "model.path=a/b"] if command == "train" else ["run=tests"]))
    with pytest.raises(ConfigError) as caught:
        check_command(command, config)
    assert message in str(caught.value)
