"""Every key of the commands beside train with hostile values: accepted, or refused with one message that names it."""

import functools
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from instruct_lit.config.benchmark_builders import request_of
from instruct_lit.config.check_commands import check_command
from instruct_lit.config.compose import flat, runs_of
from instruct_lit.config.messages import explain
from instruct_lit.config.model_builders import engine_options, given_template, labels_of, sampling_of
from instruct_lit.config.schema import COMMANDS
from instruct_lit.config.schema.options import keys_of
from instruct_lit.errors import ConfigError, InstructLitError
from instruct_lit.evaluation.metrics import check_metrics
from tests.configs import composed

VALUES = ("hello", "", None, 0, -1, 10**30, 1e300, math.nan, [], [None], {"a": 1}, True, "\x1b[2J")
QUICK_VALUES = (None, -1, {"a": 1}, "\x1b[2J")  # for each key at every run
# What lets the checks of a command pass; a finished model is any folder for them.
GIVEN = {
    "evaluate": ("run=.", "template=alpaca", "data=demo", "judge=ollama", "judge.model=m"),
    "benchmark": ("run=.", "template=alpaca", "suite=mt_bench", "judge=ollama", "judge.model=m"),
    "peek": (),
    "chat": ("run=.", "template=alpaca"),
    "serve": ("run=.", "template=alpaca"),
    "arena": ("template=alpaca", "runs=[., /bin]", "judge=ollama", "judge.model=m"),
    "review": ("run=.",),
    "export": ("run=.", "template=alpaca"),
    "report": ("folder=.",),
    "reproduce": ("run=.",),
}


@functools.cache
def base(command: str) -> DictConfig:
    """A configuration whose checks pass, without Hydra's part."""
    config = composed(command, *GIVEN[command], "hydra.runtime.output_dir=out", hydra=True)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    OmegaConf.resolve(config)
    check_command(command, config)
    return config


def message_of(command: str, key: str, value: Any) -> str | None:
    """What a person reads who sets a key to a value; None where it is accepted. Any other exception is a fault."""
    config = base(command).copy()
    group = key.rpartition(".")[0]
    if group and OmegaConf.select(config, group) is None:
        return None  # a group that is not chosen, such as judge
    try:
        OmegaConf.update(config, key, value, merge=False)
        check_command(command, config)
        if "template" in config:
            given_template(config)
        if command == "evaluate":
            check_metrics(config.metrics)
        if command == "benchmark":
            request_of(config, Path("out"))
            labels_of(runs_of(config))
        if "generation" in config:
            sampling_of(config)
            engine_options(config)
    except InstructLitError as error:
        return str(error)
    except OmegaConfBaseException as error:
        return str(ConfigError(explain(error, command)))
    return None


@pytest.mark.parametrize("values", [QUICK_VALUES, pytest.param(VALUES, marks=pytest.mark.slow)], ids=["some", "all"])
@pytest.mark.parametrize(
    "command",
    [pytest.param(c, marks=pytest.mark.slow) if c in ("evaluate", "arena", "benchmark", "peek") else c for c in GIVEN],
)
def test_hostile_values_are_refused_by_name_or_accepted(
    command: str, values: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("instruct_lit.evaluation.judging.judge.Judge.check", lambda judge: None)  # none is there
    faults = []
    for key in sorted({key.name for key in keys_of(COMMANDS[command])} | set(flat(base(command)))):
        for value in values:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    message = message_of(command, key, value)
            except Exception as error:
                faults.append(f"{key}={value!r}: {type(error).__name__}: {error}")
                continue
            if message is not None and (key.split(".")[0] not in message or "\x1b" in message):
                faults.append(f"{key}={value!r}: does not name the key: {message}")
    assert not faults, "\n".join(faults)


def test_every_command_is_covered() -> None:
    assert set(GIVEN) == set(COMMANDS) - {"train"}
