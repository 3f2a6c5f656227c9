"""Suites that run through lm-evaluation-harness: loading their tasks, running a model, reading the figures."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_lit.suites.compat_lm_eval import as_json, dataset_of, harness_model, members, n_examples_needed
from instruct_lit.suites.evaluated_model import EvaluatedModel
from instruct_lit.suites.leaks import Leaks, figure_without
from instruct_lit.suites.suite import BenchmarkError, Figure, Report, RunRequest, Suite, mean_of

if TYPE_CHECKING:
    from lm_eval.api.task import Task

OUR_TASKS = Path(__file__).parent / "tasks"
N_GUESSES = 20  # runs with random scores whose mean is a chance level
SEED = 1234  # of the few-shot examples; the harness's own default


@contextlib.contextmanager
def harness_log(path: Path) -> Iterator[None]:
    """Redirect the output of the harness, its libraries and their processes to a file; ours stays on the terminal."""
    root = logging.getLogger()
    with path.open("a", encoding="utf-8") as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        before, root.handlers, level = root.handlers, [handler], root.level
        root.setLevel(logging.INFO)
        sys.stderr.flush()
        terminal = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stderr(file), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            file.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            root.handlers = before
            root.setLevel(level)


def local_data(folder: Path | None) -> contextlib.AbstractContextManager[None]:
    """Let `load_dataset("owner/name")` read `folder/owner/name` where it exists: `datasets` prefers a local path."""
    return contextlib.chdir(folder) if folder is not None else contextlib.nullcontext()


class Tasks:
    """The tasks of a suite, their data loaded from the hub or from a folder of the hub's shape.

    `missing` maps tasks without data to the reason.

    Raises: BenchmarkError when data are missing and `on_missing` is `error`, or when no task is left.
    """

    def __init__(self, suite: Suite, data_dir: Path | None, on_missing: str) -> None:
        import lm_eval.tasks

        self.suite, self.data_dir = suite, data_dir
        stock = Path(lm_eval.tasks.__file__).parent
        self.manager = lm_eval.tasks.TaskManager(
            include_defaults=False, include_path=[*(stock / folder for folder in suite.folders), OUR_TASKS]
        )
        self.tasks: dict[str, Task] = {}
        self.missing: dict[str, str] = {}
        names = list(dict.fromkeys(leaf for name in suite.tasks for leaf in self._leaves(name)))
        for name in names:
            try:
                with local_data(data_dir):
                    self.tasks |= self.manager.load([name])["tasks"]
            except Exception as error:  # a data set can fail to load in any way
                self.missing[name] = f"{dataset_of(self.manager, name)}: {type(error).__name__}: {_first_line(error)}"
                if on_missing == "error" and data_dir is None:
                    break  # without a network every other task would time out too
        if self.missing and (on_missing == "error" or not self.tasks):
            raise BenchmarkError(self._message())

    def groups(self) -> dict[str, list[str]]:
        """The loaded tasks of each group of the suite."""
        found = {group: [t for t in self._leaves(tag) if t in self.tasks] for group, tag in self.suite.groups.items()}
        return {group: members for group, members in found.items() if members}

    def _leaves(self, name: str) -> list[str]:
        found = members(self.manager, name)
        if found is None:
            raise BenchmarkError(f"suite.tasks={name}: the harness has no such task in {list(self.suite.folders)}")
        return [leaf for member in found for leaf in self._leaves(member)] if found else [name]

    def _message(self) -> str:
        name, reason = next(iter(self.missing.items()))
        more = f" and {len(self.missing) - 1} others" if len(self.missing) > 1 else ""
        skip = f", or benchmark.on_missing=skip for the other {len(self.tasks)} tasks" if self.tasks else ""
        place = f"={self.data_dir}/<owner>/<name>/" if self.data_dir else "=<folder with the hub's <owner>/<name>/>"
        reason = reason if len(reason) < 120 else f"{reason[:120]}…"
        return (
            f"suite={self.suite.name}: cannot load the data of {name}{more} ({reason}); give benchmark.data_dir{place}"
            f"{skip}"
        )


def run_suite(tasks: Tasks, model: EvaluatedModel, request: RunRequest, leaks: Leaks | None = None) -> Report:
    """Run one model through the tasks of a suite; the harness's results and samples are written to `out_dir`.

    With `leaks` the details hold each task's figure without the leaked items.

    Raises: BenchmarkError when a task has too few examples for the shots.
    """
    import lm_eval

    suite, out_dir = tasks.suite, request.out_dir
    _check_shots(tasks, request.n_shot)
    start, n_cut = time.perf_counter(), model.n_cut
    with local_data(tasks.data_dir):
        results = lm_eval.simple_evaluate(
            model=harness_model(model),
            tasks=list(tasks.tasks.values()),
            task_manager=tasks.manager,
            num_fewshot=request.n_shot,
            limit=request.limit,
            apply_chat_template=model.mode == "on",
            fewshot_as_multiturn=False,
            confirm_run_unsafe_code=request.allow_code,
            bootstrap_iters=1000,
            **dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), SEED),
        )
    samples = results.pop("samples")
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "results.json").write_text(json.dumps(results, indent=1, default=as_json))
    for name, rows in samples.items():
        with (out_dir / f"samples_{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, default=as_json, ensure_ascii=False) + "\n" for row in rows)
    figures = {name: figure_of(name, task, results) for name, task in tasks.tasks.items()}
    details: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 1), "n_prompts_cut": model.n_cut - n_cut}
    if leaks is not None:
        details["leaks"] = {
            name: figure_without(tasks.tasks[name], samples[name], figures[name].metric, found)
            for name, found in leaks.items()
        }
    groups = {group: mean_of([figures[t] for t in ts], suite.mean_over) for group, ts in tasks.groups().items()}
    score = mean_of(list(figures.values()), suite.mean_over)
    return Report(model.run, model.label, model.mode, score, groups, figures, details)


def figure_of(name: str, task: Task, results: Mapping[str, Any]) -> Figure:
    """A task's first metric with its standard error, its chance level, and its other metrics."""
    numbers = {
        key.split(",")[0]: float(value)
        for key, value in results["results"][name].items()
        if "," in key and isinstance(value, int | float)
    }
    values = {key: value for key, value in numbers.items() if not key.endswith("_stderr")}
    metric = next(m for m in (*task.aggregation(), *values) if m in values)
    return Figure(
        metric=metric,
        value=values[metric],
        stderr=numbers.get(f"{metric}_stderr"),
        n=int(results["n-samples"][name]["effective"]),
        chance=chance(task, metric),
        n_shot=results["n-shot"].get(name),
        version=results["versions"].get(name),
        others={m: v for m, v in values.items() if m != metric},
    )


def chance(task: Task, metric: str) -> float:
    """The chance level: for choices the task's own metric over random scores, for generated answers 0."""
    if task.OUTPUT_TYPE == "generate_until":
        return 0.0
    by_item: dict[int, list[Any]] = {}
    for instance in task.instances:
        by_item.setdefault(instance.doc_id, []).append(instance)
    if metric == "acc" and not callable(task.config.process_results):
        return sum(1 / len(instances) for instances in by_item.values()) / len(by_item)
    aggregate = task.aggregation()[metric]
    draw = random.Random(SEED)
    levels = []
    for _ in range(N_GUESSES):
        values = [
            task.process_results(instances[0].doc, [(-draw.random(), False) for _ in instances])[metric]
            for instances in by_item.values()
        ]
        levels.append(float(aggregate(values)))
    return sum(levels) / len(levels)


def _check_shots(tasks: Tasks, n_shot: int | None) -> None:
    for name, task in tasks.tasks.items():
        if not n_shot or task.get_config("num_fewshot") == 0:
            continue
        n_examples, n_needed = len(task.fewshot_docs()), n_examples_needed(task, n_shot)
        if n_examples < n_needed:
            raise BenchmarkError(
                f"benchmark.n_shot={n_shot}: the data of task {name} have {n_examples} examples to draw from; "
                f"at most {n_examples - n_needed + n_shot} shots"
            )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no message"])[0]
