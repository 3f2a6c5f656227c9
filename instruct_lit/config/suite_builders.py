"""Benchmarks of lm-evaluation-harness inside other commands."""

import os
from difflib import get_close_matches
from pathlib import Path

from omegaconf import OmegaConf

from instruct_lit.config.compose import CONF, choices_of
from instruct_lit.config.targets import plain
from instruct_lit.core.data.template import Template
from instruct_lit.errors import ConfigError
from instruct_lit.optional_imports import need
from instruct_lit.suites.harness import Tasks, harness_log
from instruct_lit.suites.suite import BenchmarkError, Suite

BARE = Template("bare", "{{ instruction }}{{ response }}")


def harness_suite(key: str, name: str, limit: int | None = None) -> Suite:
    """The suite that the value of `key` names; ConfigError where it is not one of lm-evaluation-harness."""
    if name not in (names := choices_of("suite")):
        near = get_close_matches(name, names, n=1)
        raise ConfigError(f"{key}: allowed are {', '.join(names)}{f'; did you mean {near[0]}?' if near else ''}")
    settings = {"tasks": (), **plain(OmegaConf.load(CONF / "suite" / f"{name}.yaml"))}
    suite = Suite(**settings | ({} if limit is None else {"limit": limit}))
    if suite.system != "lm_eval" or not suite.tasks or suite.runs_code:
        raise ConfigError(f"{key}: not a benchmark of lm-evaluation-harness, or it runs code; give another one")
    return suite


def harness_tasks(key: str, name: str, data_dir: str | None, limit: int | None = None) -> Tasks:
    """The tasks of a suite, named by the value of `key`, with their data.

    Raises: ConfigError for another name, BenchmarkError where its data are missing.
    """
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
