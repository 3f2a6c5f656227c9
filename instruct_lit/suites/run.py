"""A benchmark from its suite and models to its reports, with the leaks into the training data of each run."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

from tqdm import tqdm

from instruct_lit.evaluation.ratings import read_battles
from instruct_lit.evaluation.remote_model import RemoteModel
from instruct_lit.optional_imports import installed
from instruct_lit.reports.leaderboard import show_leaderboard
from instruct_lit.suites.evaluated_model import EvaluatedModel
from instruct_lit.suites.leaks import Leaks, figure_without, leaks_of, print_leaks
from instruct_lit.suites.results import FILE, print_table, write_reports
from instruct_lit.suites.suite import Report, RunRequest, mean_of

TrainingOf = Callable[[str], Sequence[str] | None]  # the training questions of a run; None where they are unknown


def run_benchmark(
    models: Iterable[EvaluatedModel | RemoteModel],
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
    about, name = dict(about), request.suite.name
    run = _run_harness if request.suite.system == "lm_eval" else _run_package
    for report in run(models, request, cache(training_of), about):
        reports.append(report)
        write_reports(request.out_dir / FILE, name, reports, **about)
    print_table(name, reports, about.get("missing"))
    print(f"{request.out_dir}: {FILE}, {request.log.name}, a folder with the suite's own files for each model")
    return reports


def rate(suite: str, path: Path, out_dir: Path) -> float:
    """Rate the models of a file of battles; return the best rating."""
    battles = read_battles(path)
    ratings = show_leaderboard(battles)
    content = {"suite": suite, "battles": str(path), "n_battles": len(battles)}
    content |= {"leaderboard": [asdict(rating) for rating in ratings]}
    (out_dir / FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{out_dir}: {FILE}")
    return ratings[0].bradley_terry


def _run_harness(
    models: Iterable[EvaluatedModel | RemoteModel], request: RunRequest, training_of: TrainingOf, about: dict[str, Any]
) -> Iterator[Report]:
    """The reports of a suite of lm-evaluation-harness; `about` gets the `missing` tasks."""
    from instruct_lit.suites import harness

    print(f"{request.suite.name}: loading the data of its tasks", flush=True)
    with harness.harness_log(request.log):
        tasks = harness.Tasks(request.suite, request.data_dir, request.on_missing)
    about["missing"] = tasks.missing
    leaks: dict[str, Leaks | None] = {}
    for number, model in enumerate(models):
        if model.run not in leaks:
            leaks[model.run] = _leaks(model.run, training_of, partial(tasks.texts, request.suite.limit))
        with progress(model, "request"), harness.harness_log(request.log):
            yield harness.run_suite(tasks, model, _for_model(request, number, model), leaks[model.run])


def _run_package(
    models: Iterable[EvaluatedModel | RemoteModel], request: RunRequest, training_of: TrainingOf, about: dict[str, Any]
) -> Iterator[Report]:
    """The reports of a suite whose library has an environment of its own.

    The module of the library has `run(model, request)`, the figures by task, and `items_of(folder, task, metric)`.
    """
    library = import_module(f"instruct_lit.suites.{request.suite.system}")
    for number, model in enumerate(models):
        own, start, n_cut = _for_model(request, number, model), time.perf_counter(), model.n_cut
        own.out_dir.mkdir(parents=True, exist_ok=True)
        with progress(model, "response"):
            figures = library.run(model, own)
        seconds = round(time.perf_counter() - start, 1)
        details: dict[str, Any] = {"seconds": seconds, "n_prompts_cut": model.n_cut - n_cut}
        items = {name: library.items_of(own.out_dir, name, figure.metric) for name, figure in figures.items()}
        texts = {name: [text for text, _ in of_task] for name, of_task in items.items()}
        if (leaks := _leaks(model.run, training_of, partial(dict, texts))) is not None:
            values = {name: enumerate(value for _, value in items[name]) for name in leaks}
            details["leaks"] = {name: figure_without(found, values[name]) for name, found in leaks.items()}
        score = mean_of(list(figures.values()), "tasks")
        yield Report(model.run, model.label, model.mode, score, {}, figures, details)


def _leaks(run: str, training_of: TrainingOf, texts: Callable[[], Mapping[str, Sequence[str]]]) -> Leaks | None:
    """The items that are in the training data or close to it of a run, printed; None where these are unknown."""
    train = training_of(run)
    if train is None:
        return None
    leaks = leaks_of(train, texts(), installed("sklearn"))
    print_leaks(run, leaks)
    return leaks


def _for_model(request: RunRequest, number: int, model: EvaluatedModel | RemoteModel) -> RunRequest:
    return replace(request, out_dir=request.out_dir / f"{number}-{model.label}-{model.mode}")


def progress(model: EvaluatedModel | RemoteModel, unit: str) -> tqdm:
    """The progress bar of a model."""
    title = f"{model.label}, template {model.mode}"
    model.bar = tqdm(desc=title, unit=unit, dynamic_ncols=True)
    return model.bar
