"""The rules between the keys of `evaluate` and of `benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from instruct_lit.config.judge_builders import check_judge, check_url
from instruct_lit.config.schema import check_values, missing_runs
from instruct_lit.core import optional_imports
from instruct_lit.errors import ConfigError


def check_evaluate(config: Any) -> None:
    """Raise one ConfigError that lists every impossible value of an evaluation's configuration."""
    problems = check_values(config)
    if sum(given is not None for given in (config.run, config.responses, config.compare)) != 1:
        problems.append("run=…, responses=… or compare=[…,…]: give exactly one of the three")
    if not set(config.metrics) - {"ended"}:
        problems.append(f"metrics={list(config.metrics)}: give at least one besides ended")
    if config.run is not None:
        problems += missing_runs(config.run)
    if config.compare is not None and len(config.compare) != 2:
        problems.append(f"compare={list(config.compare)}: give two run folders or files of responses")
    for side in config.compare or ():
        if not Path(side).expanduser().exists():
            problems.append(f"compare: {side}: no such folder or file")
    for key, path in {"responses": config.responses, "leaks.train": config.leaks.train}.items():
        if path is not None and not Path(path).expanduser().is_file():
            problems.append(f"{key}={path}: no such file")
    if config.leaks.near and not optional_imports.installed("datasketch"):
        problems.append(optional_imports.message("datasketch", "leaks.near=true", "filters"))
    if config.compare is not None and not optional_imports.installed("sklearn"):
        problems.append(optional_imports.message("sklearn", "compare", "judge"))
    if config.judge is not None:
        problems += check_judge(config.judge, config.compare is not None)
    if problems:
        raise ConfigError("\n  ".join(problems))


def check_benchmark(config: Any) -> None:
    """Raise one ConfigError that lists every impossible value of a benchmark's configuration."""
    problems, asked, suite = check_values(config), config.benchmark, config.suite
    if suite.system == "arena" and not suite.options.get("battles"):
        problems.append("suite.options.battles=…: give a file of battles, as `python -m instruct_lit.arena` writes it")
    if suite.system != "arena":
        problems += missing_runs(config.run)
    if suite.system not in ("lm_eval", "arena") and asked.n_shot is not None:
        problems.append(f"benchmark.n_shot={asked.n_shot}: suite={suite.name} has its own examples; leave it out")
    if suite.options.get("judge_url") is not None:
        problems += check_url("suite.options.judge_url", str(suite.options.judge_url))
    if asked.data_dir is not None and not Path(asked.data_dir).expanduser().is_dir():
        problems.append(f"benchmark.data_dir={asked.data_dir}: no such folder")
    if suite.runs_code and not asked.allow_code:
        problems.append(
            f"suite={suite.name}: it runs code that the model writes, in a process with limits but no sandbox; give "
            "benchmark.allow_code=true, best inside a container"
        )
    if problems:
        raise ConfigError("\n  ".join(problems))
