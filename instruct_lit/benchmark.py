"""python -m instruct_lit.benchmark: run finished models through a public benchmark."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_lit.config.compose import run_command
from instruct_lit.config.judge_builders import check_url, forget_secrets
from instruct_lit.config.schema import BenchmarkConfig, check_values, missing_runs
from instruct_lit.errors import ConfigError, InstructLitError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from instruct_lit.suites.harness_model import EvaluatedModel
    from instruct_lit.suites.leaks import Leaks
    from instruct_lit.suites.suite import Report


def check_benchmark(config: Any) -> None:
    """Raise one ConfigError that lists every impossible value of a benchmark's configuration."""
    problems, asked, system = check_values(config), config.benchmark, config.suite.system
    if system == "arena" and not config.suite.options.get("battles"):
        problems.append("suite.options.battles=…: give a file of battles, as `python -m instruct_lit.arena` keeps them")
    if system != "arena":
        problems += missing_runs(config.run)
    if config.suite.options.get("judge_url") is not None:
        problems += check_url("suite.options.judge_url", str(config.suite.options.judge_url))
    if asked.data_dir is not None and not Path(asked.data_dir).expanduser().is_dir():
        problems.append(f"benchmark.data_dir={asked.data_dir}: no such folder")
    if config.suite.runs_code and not asked.allow_code:
        problems.append(
            f"suite={config.suite.name}: it runs code that the model writes, in a process with limits that is no "
            "sandbox; say benchmark.allow_code=true, best inside a container"
        )
    if problems:
        raise ConfigError("\n  ".join(problems))


def benchmark(config: DictConfig) -> float:
    """Run every model of `run` through the suite; return the first one's score."""
    from hydra.core.hydra_config import HydraConfig

    out_dir = Path(HydraConfig.get().runtime.output_dir)
    forget_secrets(out_dir, config.suite.options.get("judge_url"))
    check_benchmark(config)
    if config.benchmark.data_dir is not None:  # read when the libraries are imported
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    from instruct_lit.suites.results import FILE, print_table, write_reports

    about = {"limit": config.benchmark.limit, "n_shot": config.benchmark.n_shot}
    if config.suite.system == "arena":
        return rate(config, out_dir)
    reports: list[Report] = []
    through = through_harness if config.suite.system == "lm_eval" else through_package
    for report in through(config, out_dir, about):
        reports.append(report)
        write_reports(out_dir / FILE, config.suite.name, reports, **about)  # after each, so that nothing done is lost
    print_table(config.suite.name, reports, about.get("missing"))
    print(f"{out_dir}: {FILE}, harness.log, and what the harness itself leaves, a folder for each model")
    return reports[0].score.value


def rate(config: DictConfig, out_dir: Path) -> float:
    """Rate the models of a file of battles; return the best one's rating."""
    import json
    from dataclasses import asdict

    from instruct_lit.suites.leaderboard import print_leaderboard
    from instruct_lit.suites.ratings import leaderboard, read_battles
    from instruct_lit.suites.results import FILE

    path = Path(config.suite.options.battles).expanduser()
    battles = read_battles(path)
    ratings = leaderboard(battles)
    content = {"suite": config.suite.name, "battles": str(path), "n_battles": len(battles)}
    content |= {"leaderboard": [asdict(rating) for rating in ratings]}
    (out_dir / FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print_leaderboard(ratings)
    print(f"{out_dir}: {FILE}")
    return ratings[0].bradley_terry


def through_harness(config: DictConfig, out_dir: Path, about: dict[str, Any]) -> Iterator[Report]:
    """The reports of all models in a suite of lm-evaluation-harness, one after the other."""
    import sys

    from omegaconf import OmegaConf
    from tqdm import tqdm

    from instruct_lit.config import builders as build
    from instruct_lit.suites.suite import Suite

    build.need("lm_eval", "benchmark", f"suite={config.suite.name}")
    from instruct_lit.suites import harness
    from instruct_lit.suites.leaks import leaks_of_tasks, print_leaks

    asked = config.benchmark
    settings = OmegaConf.to_container(config.suite)
    assert isinstance(settings, dict)
    suite = Suite(**{str(key): value for key, value in settings.items() if key not in ("system", "options")})
    log = out_dir / "harness.log"
    print(f"{suite.name}: loading the data of its tasks", flush=True)
    with harness.harness_log(log):
        tasks = harness.Tasks(suite, _data_dir(config), asked.on_missing)
    about["missing"] = tasks.missing
    leaks: dict[str, Leaks | None] = {}
    near = find_spec("datasketch") is not None
    for number, (run, label, subject, template) in enumerate(subjects(config)):
        if run not in leaks:
            train, limit = training_of_run(config, run), suite.limit if asked.limit is None else asked.limit
            leaks[run] = leaks_of_tasks(train, tasks.tasks, limit, near) if train is not None else None
            print_leaks(run, leaks[run])
        title = f"{label}, template {template}"
        with (
            tqdm(desc=title, unit="request", dynamic_ncols=True, file=sys.stdout) as bar,
            harness.harness_log(log),
        ):
            subject.bar = bar
            yield harness.run_suite(
                tasks, subject, run, label, template, out_dir / f"{number}-{label}-{template}",
                asked.n_shot, asked.limit, asked.allow_code, leaks.get(run),
            )  # fmt: skip


def through_package(config: DictConfig, out_dir: Path, about: dict[str, Any]) -> Iterator[Report]:
    """The reports of all models in a system that has an environment of its own."""
    import sys

    from omegaconf import OmegaConf
    from tqdm import tqdm

    from instruct_lit.suites.leaks import leaks_of_items, mean_without, print_leaks
    from instruct_lit.suites.package_items import items_of
    from instruct_lit.suites.packages import run_package
    from instruct_lit.suites.suite import RunRequest

    if config.benchmark.n_shot is not None:
        raise ConfigError(f"benchmark.n_shot={config.benchmark.n_shot}: suite={config.suite.name} has its own shots")
    options = OmegaConf.to_container(config.suite.options, resolve=True)
    assert isinstance(options, dict)
    training: dict[str, list[str] | None] = {}
    for number, (run, label, subject, template) in enumerate(subjects(config)):
        title = f"{label}, template {template}"
        asked = RunRequest(
            tasks=list(config.suite.tasks),
            limit=config.suite.limit if config.benchmark.limit is None else config.benchmark.limit,
            data_dir=_data_dir(config),
            options={str(key): value for key, value in options.items()},
            cache=Path(config.paths.cache).expanduser().resolve(),
            out_dir=out_dir.resolve() / f"{number}-{label}-{template}",
            log=out_dir.resolve() / "harness.log",
        )
        with tqdm(desc=title, unit="answer", dynamic_ncols=True, file=sys.stdout) as bar:
            subject.bar = bar
            report = run_package(config.suite.system, subject, asked, run, label, template)
        if run not in training:
            training[run] = training_of_run(config, run)
        if (train := training[run]) is not None:
            items = items_of(config.suite.system, asked.out_dir, report.tasks)
            leaks = leaks_of_items(train, items, find_spec("datasketch") is not None)
            print_leaks(run, leaks)
            without = {name: mean_without(items[name], found) for name, found in leaks.items()}
            report = replace(report, details={**report.details, "leaks": without})
        yield report


def training_of_run(config: DictConfig, run: str) -> list[str] | None:
    """What a run was trained on, to look for benchmark items in it; None where that is not known or not wanted."""
    from omegaconf import OmegaConf

    from instruct_lit.config import builders as build
    from instruct_lit.core.bundle import bundle_of, read_about
    from instruct_lit.evaluation.leaks import training_questions

    directory = bundle_of(run)
    known = read_about(directory) and (directory.parent / "config.yaml").is_file()
    if not config.benchmark.leaks or not known:
        return None
    try:
        data = build.data_of_run(
            OmegaConf.create({"run": run, "data": None, "paths": config.paths}), build.open_model(run)
        )
    except InstructLitError as error:
        print(f"leaks: the training data of {run} cannot be read, so they are not looked for ({error})")
        return None
    return list(training_questions(data))


def subjects(config: DictConfig) -> Iterator[tuple[str, str, EvaluatedModel, str]]:
    """Every model to be examined, with its name, a short label, and whether it is asked through its template.

    A tuned model is asked as `benchmark.template` says; the base it started from, and a directory that is no bundle of
    ours, with the bare text.
    """
    from instruct_lit.config import builders as build
    from instruct_lit.config.provenance import weights_sha256
    from instruct_lit.core.bundle import bundle_of, read_about
    from instruct_lit.core.data.template import Template
    from instruct_lit.core.model.device import best_device
    from instruct_lit.evaluation.answer_cache import AnswerCache
    from instruct_lit.suites.harness_model import EvaluatedModel

    asked = config.benchmark
    bare = Template("bare", "{{ instruction }}{{ response }}")
    given = build.given_template(config)
    seen = set()
    for run, label in zip(_runs(config), _labels(_runs(config)), strict=True):
        plain = config.template is None and not read_about(bundle_of(run))
        opened = build.open_model(run, bare if plain else given)
        modes = ["off"] if plain else ["on", "off"] if asked.template == "both" else [asked.template]
        models = [(label, opened.model, modes)]
        base = build.base_of_run(config, opened) if asked.base else None
        if base is not None:
            models.append((f"{label} before", base, ["off"]))
        for name, model, its_modes in models:
            key = weights_sha256(model)[:16]
            if model is base and key in seen:
                continue  # two runs from the same base
            seen.add(key)
            model.to(best_device())
            kept = AnswerCache(Path(config.paths.cache) / "benchmark" / f"{key}.jsonl")
            for mode in its_modes:
                template, tokenizer = opened.template, opened.tokenizer
                if mode == "off":
                    template, tokenizer = bare, tokenizer.without_markup()
                yield str(run), name, EvaluatedModel(model, tokenizer, template, kept, asked.max_rows), mode


def _data_dir(config: Any) -> Path | None:
    given = config.benchmark.data_dir
    return Path(given).expanduser().resolve() if given else None


def _runs(config: Any) -> list[str]:
    if config.run is None:
        return []
    return [str(config.run)] if isinstance(config.run, str) else [str(run) for run in config.run]


def _labels(runs: list[str]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart."""
    parts = [[p for p in Path(run).expanduser().resolve().parts if p != "bundle"] for run in runs]
    for n in range(1, max(map(len, parts)) + 1):
        labels = ["_".join(p[-n:]).strip("/") for p in parts]
        if len(set(labels)) == len({tuple(p) for p in parts}):
            break
    return labels


def main() -> None:
    """Entry point of the command."""
    run_command("benchmark", BenchmarkConfig, benchmark)


if __name__ == "__main__":
    main()
