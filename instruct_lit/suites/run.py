"""A benchmark from its suite and models to its reports, with the leaks into the training data of each run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from instruct_lit.core.optional_imports import installed
from instruct_lit.evaluation.ratings import leaderboard, read_battles
from instruct_lit.reports.leaderboard import print_leaderboard
from instruct_lit.suites.leaks import Leaks, leaks_of_items, leaks_of_tasks, mean_without, print_leaks
from instruct_lit.suites.packages import SYSTEMS, run_package
from instruct_lit.suites.results import FILE, print_table, write_reports
from instruct_lit.suites.suite import Report, RunRequest, Suite

if TYPE_CHECKING:
    from instruct_lit.suites.evaluated_model import EvaluatedModel

TrainingOf = Callable[[str], Sequence[str] | None]  # the training questions of a run; None where they are unknown


def run_benchmark(
    suite: Suite,
    models: Iterable[EvaluatedModel],
    request: RunRequest,
    training_of: TrainingOf,
    about: Mapping[str, Any],
) -> list[Report]:
    """Run every model through a suite, write the results after each, and print the table.

    Args:
        request: its `out_dir` is that of the benchmark; each model gets a folder in it.
        about: the settings that are stored with the results.
    """
    reports: list[Report] = []
    about = dict(about)
    run = _run_harness if suite.system == "lm_eval" else _run_packages
    for report in run(suite, models, request, training_of, about):
        reports.append(report)
        write_reports(request.out_dir / FILE, suite.name, reports, **about)
    print_table(suite.name, reports, about.get("missing"))
    print(f"{request.out_dir}: {FILE}, {request.log.name}, a folder with the suite's own files for each model")
    return reports


def rate(suite: str, path: Path, out_dir: Path) -> float:
    """Rate the models of a file of battles; return the best rating."""
    battles = read_battles(path)
    ratings = leaderboard(battles)
    content = {"suite": suite, "battles": str(path), "n_battles": len(battles)}
    content |= {"leaderboard": [asdict(rating) for rating in ratings]}
    (out_dir / FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print_leaderboard(ratings)
    print(f"{out_dir}: {FILE}")
    return ratings[0].bradley_terry


def _run_harness(
    suite: Suite, models: Iterable[EvaluatedModel], request: RunRequest, training_of: TrainingOf, about: dict[str, Any]
) -> Iterator[Report]:
    """The reports of a suite of lm-evaluation-harness; `about` gets the `missing` tasks."""
    from instruct_lit.suites import harness

    print(f"{suite.name}: loading the data of its tasks", flush=True)
    with harness.harness_log(request.log):
        tasks = harness.Tasks(suite, request.data_dir, request.on_missing)
    about["missing"] = tasks.missing
    leaks: dict[str, Leaks | None] = {}
    for number, model in enumerate(models):
        if model.run not in leaks:
            train = training_of(model.run)
            near, limit = installed("datasketch"), request.limit
            leaks[model.run] = None if train is None else leaks_of_tasks(train, tasks.tasks, limit, near)
            print_leaks(model.run, leaks[model.run])
        with _progress(model, "request"), harness.harness_log(request.log):
            yield harness.run_suite(tasks, model, _for_model(request, number, model), leaks[model.run])


def _run_packages(
    suite: Suite, models: Iterable[EvaluatedModel], request: RunRequest, training_of: TrainingOf, about: dict[str, Any]
) -> Iterator[Report]:
    """The reports of a suite whose library has an environment of its own."""
    training_of = cache(training_of)
    for number, model in enumerate(models):
        own = _for_model(request, number, model)
        with _progress(model, "response"):
            report = run_package(suite.system, model, own)
        if (train := training_of(model.run)) is not None:
            items_of = SYSTEMS[suite.system].items_of
            items = {name: items_of(own.out_dir, name, figure.metric) for name, figure in report.tasks.items()}
            leaks = leaks_of_items(train, items, installed("datasketch"))
            print_leaks(model.run, leaks)
            without = {name: mean_without(items[name], found) for name, found in leaks.items()}
            report = replace(report, details={**report.details, "leaks": without})
        yield report


def _for_model(request: RunRequest, number: int, model: EvaluatedModel) -> RunRequest:
    return replace(request, out_dir=request.out_dir / f"{number}-{model.label}-{model.mode}")


def _progress(model: EvaluatedModel, unit: str) -> tqdm[Any]:
    """The progress bar of a model."""
    title = f"{model.label}, template {model.mode}"
    model.bar = tqdm(desc=title, unit=unit, dynamic_ncols=True, file=sys.stdout)
    return model.bar
