"""Every key of train with hostile values: refused with one message before any work, or accepted; never an exception.

The keys are read from the schema and the composed configuration, so that a new one is covered as it is.
"""

import copy
import functools
import math
import re
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from instruct_lit.config.check_commands import check_command
from instruct_lit.config.check_machine import check_machine, check_targets, worker_relations
from instruct_lit.config.compose import CONF, flat
from instruct_lit.config.messages import explain
from instruct_lit.config.model_builders import sampling_of
from instruct_lit.config.run_builders import trainer_of
from instruct_lit.config.schema.options import keys_of, violations
from instruct_lit.config.schema.training import TrainConfig
from instruct_lit.errors import ConfigError, InstructLitError
from tests.commands import SMALL
from tests.configs import composed

VALUES = ("hello", "", None, 0, -1, 10**30, 1e300, math.nan, [], True)
QUICK_VALUES = ("hello", None, -1, math.nan)  # for each key at every run
BUILT_EARLY = ("trainer", "callbacks", "logger")


@functools.cache
def base() -> DictConfig:
    """A small configuration whose own checks pass, without Hydra's part."""
    config = composed("train", *SMALL, "hydra.runtime.output_dir=out", hydra=True)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    OmegaConf.resolve(config)
    return config


@functools.cache
def keys() -> tuple[str, ...]:
    """All keys of the schema, and those of the nodes whose schema is a constructor's signature."""
    with_hydra = composed("train", *SMALL, "hydra.runtime.output_dir=out", hydra=True)
    HydraConfig.instance().set_config(with_hydra)
    return tuple(sorted({key.name for key in keys_of(TrainConfig)} | set(flat(base()))))


def message_of(key: str, value: Any) -> str | None:
    """What a person reads who sets a key to a value; None where it is accepted. Any other exception is a fault."""
    config, group = base(), key.split(".")[0]
    before = copy.deepcopy(config.get(group))  # put back at the end; a copy of everything would take half of the time
    try:
        OmegaConf.update(config, key, value, merge=False)
        check_command("train", config)
        check_targets(config)
        if group in BUILT_EARLY:
            trainer_of(config, [])
        if not key.startswith(("callbacks", "logger")):
            check_machine(config)
            sampling_of(config)
    except InstructLitError as error:
        return str(error)
    except OmegaConfBaseException as error:
        return explain(error, "train")
    finally:
        config[group] = before
    return None


GROUPS = sorted({key.name.split(".")[0] for key in keys_of(TrainConfig)})


@pytest.mark.parametrize("values", [QUICK_VALUES, pytest.param(VALUES, marks=pytest.mark.slow)], ids=["some", "all"])
@pytest.mark.parametrize(
    "group", [pytest.param(g, marks=pytest.mark.slow) if g in ("callbacks", "trainer") else g for g in GROUPS]
)
def test_hostile_values_are_refused_by_name_or_accepted(group: str, values: tuple[Any, ...]) -> None:
    faults = []
    for key in (key for key in keys() if key.split(".")[0] == group):
        for value in values:
            start = time.perf_counter()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    message = message_of(key, value)
            except Exception as error:
                faults.append(f"{key}={value!r}: {type(error).__name__}: {error}")
                continue
            named = message is None or group in message or key == "data.streaming"  # which needs other keys
            if not named or len(max((message or "").split("\n"), key=len)) > 400:
                faults.append(f"{key}={value!r}: does not name the key: {message}")
            if time.perf_counter() - start > 20:
                faults.append(f"{key}={value!r}: took {time.perf_counter() - start:.0f} s")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", 2**32, "seed=4294967296: must be at most 4294967295"),
        ("data.seed", -1, "data.seed=-1: must be at least 0"),
        ("data.n_workers", 100000, "data.n_workers=100000: at most "),
        ("data.name", "../x", "data.name=../x: must be a name of files in the cache, without slashes"),
        ("data.path", 3, "data.path=3: give a file, a folder or a list of files"),
        ("data.split.train", -1, "data.split.train=-1: give a fraction below 1 or a count"),
        ("trainer.devices", 99999, "trainer.devices=99999: at most "),
        ("optimizer.weight_decay", math.nan, "optimizer.weight_decay=nan: must be a finite number of at least 0"),
        ("optimizer.lr", math.inf, "optimizer.lr=inf: "),
        ("optimizer.lr", -1.0, "Invalid learning rate: -1.0"),
        ("optimizer.betas", [0.9, "x"], "optimizer.betas=[0.9, 'x']: "),
        ("adapter.rank", 10**9, "adapter.rank=1000000000: must be at most 8192"),
        ("adapter.alpha", math.nan, "adapter.alpha=nan: must be a finite number"),
        ("adapter.targets", [3], "adapter.targets=[3]: give endings of module names, or a regular expression"),
        ("model.n_layers", 1000000, "model.n_layers=1000000: must be at most 1024"),
        ("model.d_model", 2**30, "model.n_layers=2, model.d_model=1073741824, model.context_length=96: "),
        ("callbacks.early_stopping.patience", -1, "callbacks.early_stopping.patience=-1: must be at least 0"),
        ("ckpt_path", "", "ckpt_path=: must not be empty"),
        ("bundle_dtype", "int8", "bundle_dtype=int8: allowed are float32, bfloat16, float16"),
    ],
)
def test_what_was_found_is_refused_with_the_reason(key: str, value: Any, message: str) -> None:
    assert message in (message_of(key, value) or "accepted")


@pytest.mark.parametrize(
    ("choice", "package"), [("wandb", "wandb"), ("mlflow", "mlflow"), ("comet", "comet-ml"), ("trackio", "trackio")]
)
def test_a_logger_without_its_package_names_the_extra(
    choice: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    target = OmegaConf.load(CONF / "logger" / f"{choice}.yaml")[choice]["_target_"]
    config = base().copy()
    OmegaConf.update(config, "logger", {choice: {"_target_": target}}, merge=False)
    with pytest.raises(ConfigError, match=rf"^logger.{choice}: needs {package}; pip install -e '.\[loggers\]'$"):
        check_machine(config)


def test_workers_need_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free = {"bytes": 64_000}
    monkeypatch.setattr("instruct_lit.config.check_machine.SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(
        "instruct_lit.config.check_machine.shutil.disk_usage", lambda _: SimpleNamespace(free=free["bytes"])
    )
    (message,) = violations(base(), worker_relations(2, 8))
    assert re.match(r"data\.n_workers=2: needs 2 MB of .*, which has 0\.1 MB free; use data", message)
    assert not violations(base(), worker_relations(0, 8))
    free["bytes"] = 2_000_000
    assert not violations(base(), worker_relations(2, 8))


def test_a_key_that_nothing_reads_is_refused() -> None:
    config = composed("train", "+adapter.use_rslora=true", "+model.n_layer=3", "+learning_rate=3")
    with pytest.raises(InstructLitError) as caught:
        check_command("train", config)
    for message in (
        "learning_rate: no such key; allowed are model, data, ",
        "model.n_layer: no such key; did you mean model.n_layers?",
        "adapter.use_rslora: no such key; allowed are kind, rank, ",
    ):
        assert message in str(caught.value)


COMMANDS = (  # accepted or refused where the data, the model or the step are known; and what only Hydra sees
    (2, "callbacks=null", "callbacks=null: a group needs a choice; allowed are default, "),
    (2, "data.source.n_examples=0", "data.source.n_examples=0: must be between 1 and 1000000"),
    (2, "trainer.val_check_interval=500", "trainer.val_check_interval=500: an epoch has 5 batches; give at most that"),
    (2, "trainer.limit_val_batches=0.01", "trainer.limit_val_batches=0.01: less than one of 1 batches (val)"),
    (2, "trainer.max_time=00:00:00:00", "no optimizer step was made: the run ended before it"),
    (2, "data.split.test=1e300", "more than the 60 examples"),
    (2, "optimizer.lr=1e300", "val/loss is nan after step 1"),
    (2, "batching=padded data.pad_to=100", "data.pad_to=100: the model's context has 96 tokens"),
    (0, "callbacks=none", ""),
    (0, "callbacks.early_stopping.patience=0", ""),
    (0, "data.batch_size=2147483647", ""),
    (0, "generation.max_new_tokens=2147483647", ""),
    (0, "scheduler.warmup_steps=2147483647", ""),
    (0, "trainer.fast_dev_run=true", ""),
)


@pytest.mark.slow
@pytest.mark.parametrize(("status", "overrides", "message"), COMMANDS)
def test_hostile_commands(
    status: int, overrides: str, message: str, command: Callable, small: tuple[str, ...], tmp_path: Path
) -> None:
    given = overrides.split(" ")
    named = {override.partition("=")[0] for override in given}
    others = [o for o in (*small, "trainer.max_epochs=1") if o.partition("=")[0] not in named]
    others = [o for o in others if "callbacks" not in named or not o.startswith("callbacks.")]
    start = time.monotonic()
    done = command("train", *others, *given, cwd=tmp_path, status=status)
    assert time.monotonic() - start < 20
    assert message in done.stderr and done.stderr.count("error:") == (status == 2)
    assert "Traceback" not in done.stderr + done.stdout
