"""Suites that run through lm-evaluation-harness: loading their tasks, running a model, reading the figures."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from itertools import groupby, islice
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from instruct_lit.errors import first_line
from instruct_lit.evaluation.answer_files import read_jsonl
from instruct_lit.evaluation.metrics import higher_is_better
from instruct_lit.evaluation.remote_model import RemoteModel
from instruct_lit.evaluation.statistics import clustered_error
from instruct_lit.optional_imports import pip_install
from instruct_lit.suites.compat_lm_eval import as_json, dataset_of, harness_model, members, n_examples_needed, runs_code
from instruct_lit.suites.evaluated_model import EvaluatedModel
from instruct_lit.suites.leaks import Leaks, figure_without
from instruct_lit.suites.remote_harness import check_tasks, remote_model
from instruct_lit.suites.suite import BenchmarkError, Figure, Report, RunRequest, Suite, mean_of

if TYPE_CHECKING:
    from lm_eval.api.task import Task

OUR_TASKS = Path(__file__).parent / "tasks"
PASSAGES = ("context", "passage", "article", "story")  # fields of a document that several items may share
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


@contextlib.contextmanager
def local_data(folder: Path | None) -> Iterator[None]:
    """Let `load_dataset("owner/name")` read `folder/owner/name` where it exists: `datasets` prefers a local path.

    `datasets` knows local files by their names alone, so each state of a folder has a cache of its own.
    """
    if folder is None:
        yield
        return
    import datasets

    before = Path(datasets.config.HF_DATASETS_CACHE)
    datasets.config.HF_DATASETS_CACHE = before / f"local-{_fingerprint(folder)}"
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before


@cache
def _fingerprint(folder: Path) -> str:
    """A hash of the names, sizes and times of a folder's files."""
    files = ((str(path), path.stat()) for path in sorted(folder.rglob("*")) if path.is_file())
    states = [(name, found.st_size, found.st_mtime_ns) for name, found in files]
    return hashlib.sha256(repr(states).encode()).hexdigest()[:16]


class Tasks:
    """The tasks of a suite, their data loaded from the hub or from a folder of the hub's shape.

    `missing` maps tasks without data to the reason.

    Raises: BenchmarkError when data are missing and `on_missing` is `error`, or when no task is left.
    """

    def __init__(self, suite: Suite, data_dir: Path | None, on_missing: str) -> None:
        import lm_eval.tasks

        self.suite, self.data_dir = suite, data_dir
        stock, manager = Path(lm_eval.tasks.__file__).parent, lm_eval.tasks.TaskManager
        folders = [*(stock / folder for folder in suite.folders), OUR_TASKS]
        self.manager = manager(include_defaults=False, include_path=folders)
        if any(members(self.manager, name) is None for name in suite.tasks):  # reading all tasks takes ten seconds
            self.manager = manager(include_path=OUR_TASKS)
        self.tasks: dict[str, Task] = {}
        self.missing: dict[str, str] = {}
        names = list(dict.fromkeys(leaf for name in suite.tasks for leaf in self._leaves(name)))
        for name in names:
            try:
                with local_data(data_dir):
                    self.tasks |= self.manager.load([name])["tasks"]
            except ImportError as error:
                raise BenchmarkError(
                    f"suite.tasks={name}: it needs the package {error.name} ({first_line(error)}); "
                    f"{pip_install('benchmark')}, or pip install {error.name} where the extra does not contain it"
                ) from error
            except Exception as error:  # a data set can fail to load in any way
                self.missing[name] = f"{dataset_of(self.manager, name)}: {type(error).__name__}: {first_line(error)}"
                if on_missing == "error" and data_dir is None:
                    break  # without a network every other task would time out too
        if self.missing and (on_missing == "error" or not self.tasks):
            raise BenchmarkError(self._message())

    def groups(self) -> dict[str, list[str]]:
        """The loaded tasks of each group of the suite."""
        found = {group: [t for t in self._leaves(tag) if t in self.tasks] for group, tag in self.suite.groups.items()}
        return {group: members for group, members in found.items() if members}

    def texts(self, limit: int | None) -> dict[str, list[str]]:
        """The first `limit` items of each task: the prompt without few-shot examples, as the harness renders it."""
        return {name: [_text(task, d) for d in islice(task.eval_docs, limit)] for name, task in self.tasks.items()}

    def _leaves(self, name: str) -> list[str]:
        found = members(self.manager, name)
        if found is None:
            near = ", ".join(get_close_matches(name, self.manager.all_tasks))
            raise BenchmarkError(
                f"suite.tasks={name}: lm-evaluation-harness has no such task{near and f'; did you mean {near}?'}"
            )
        return [leaf for member in found for leaf in self._leaves(member)] if found else [name]

    def _message(self) -> str:
        name, reason = next(iter(self.missing.items()))
        more = f" and {len(self.missing) - 1} others" if len(self.missing) > 1 else ""
        skip = f", or benchmark.on_missing=skip for the other {len(self.tasks)} tasks" if self.tasks else ""
        remedy = "give benchmark.data_dir=<folder with the hub's <owner>/<name>/>"
        if self.data_dir:
            remedy = f"put them into benchmark.data_dir={self.data_dir}/<owner>/<name>/"
        reason = reason if len(reason) < 120 else f"{reason[:120]}…"
        return f"suite={self.suite.name}: cannot load the data of {name}{more} ({reason}); {remedy}{skip}"


def run_suite(
    tasks: Tasks, model: EvaluatedModel | RemoteModel, request: RunRequest, leaks: Leaks | None = None
) -> Report:
    """Run one model through the tasks of a suite; the harness's results and samples are written to `out_dir`.

    With `leaks` the details hold each task's figure without the leaked items.

    Raises: BenchmarkError when a task has too few examples for the shots, or runs code without `allow_code`.
    """
    import lm_eval

    suite, out_dir = tasks.suite, request.out_dir
    _check_shots(tasks)
    unsafe = [name for name, task in tasks.tasks.items() if runs_code(task)]
    if unsafe and not request.allow_code:
        raise BenchmarkError(
            f"suite.tasks={unsafe[0]}: it runs code that the model writes; give benchmark.allow_code=true, best in a "
            "container"
        )
    if isinstance(model, RemoteModel):
        check_tasks(model, tasks.tasks)
    start, n_cut = time.perf_counter(), model.n_cut
    with local_data(tasks.data_dir):
        results = lm_eval.simple_evaluate(
            model=remote_model(model) if isinstance(model, RemoteModel) else harness_model(model),
            tasks=list(tasks.tasks.values()),
            task_manager=tasks.manager,
            num_fewshot=suite.n_shot,
            limit=suite.limit,
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
    figures = {name: figure_of(name, task, results, samples[name]) for name, task in tasks.tasks.items()}
    details: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 1), "n_prompts_cut": model.n_cut - n_cut}
    if leaks is not None:
        details["leaks"] = {
            name: figure_without(found, *_values(tasks.tasks[name], samples[name], figures[name].metric))
            for name, found in leaks.items()
        }
    if kinds := {name: found for name, rows in samples.items() if (found := by_instruction(rows))}:
        details["by_instruction"] = kinds
    groups = {group: mean_of([figures[t] for t in ts], suite.mean_over) for group, ts in tasks.groups().items()}
    score = mean_of(list(figures.values()), suite.mean_over)
    return Report(model.run, model.label, model.mode, score, groups, figures, details)


def figure_of(name: str, task: Task, results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]] = ()) -> Figure:
    """A task's first metric under its first filter with its standard error and chance level, and its other metrics.

    Where items share a passage, the standard error is that of clusters.
    """
    numbers: dict[str, float] = {}
    filters: list[str] = []
    for key, value in results["results"][name].items():
        metric, _, filtered = key.partition(",")
        if filtered and isinstance(value, int | float):
            filters.append(filtered)
            numbers[metric if filtered == filters[0] else f"{metric} ({filtered})"] = float(value)
    values = {key: value for key, value in numbers.items() if "_stderr" not in key}
    metric = next(m for m in (*task.aggregation(), *values) if m in values)
    error = numbers.get(f"{metric}_stderr")
    passages = [next((str(s["doc"][key]) for key in PASSAGES if s["doc"].get(key)), str(s["doc_id"])) for s in samples]
    if error is not None and len(set(passages)) < len({sample["doc_id"] for sample in samples}):
        scored = dict(_values(task, samples, metric)[0])
        if abs(fmean(map(float, scored.values())) - values[metric]) < 1e-6:  # a mean over items, not another statistic
            by_item = {sample["doc_id"]: passage for sample, passage in zip(samples, passages, strict=True)}
            error = clustered_error([*map(float, scored.values())], [by_item[item] for item in scored])
    return Figure(
        metric=metric,
        value=values[metric],
        stderr=error,
        n=int(results["n-samples"][name]["effective"]),
        chance=chance(task, metric),
        n_shot=results["n-shot"].get(name),
        version=results["versions"].get(name),
        others={m: v for m, v in values.items() if m != metric},
        majority=majority(task, metric),
    )


def item_values(folder: Path, report: Report, tasks: Mapping[str, Task]) -> dict[str, list[float]]:
    """The metric of each task over its items in their order, out of the samples that `run_suite` wrote to `folder`.

    Its name is that of the task, `<task>/<metric>` where less is better. Tasks whose metric is not a mean over items
    (Matthews' correlation, perplexities) are left out.
    """
    found = {}
    for name, figure in report.tasks.items():
        samples = read_jsonl(folder / f"samples_{name}.jsonl")
        values = [s[figure.metric] for s in samples if s["filter"] == samples[0]["filter"]]
        if all(isinstance(value, int | float) for value in values) and abs(fmean(values) - (figure.value or 0)) < 1e-6:
            label = name if more_is_better(tasks[name], figure.metric) else f"{name}/{figure.metric}"
            found[label] = [float(value) for value in values]
    return found


def by_instruction(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The share of followed instructions of each kind in IFEval, strictly and loosely; empty for other tasks."""
    followed: dict[str, list[tuple[bool, bool]]] = {}
    for sample in samples:
        kinds = sample["doc"].get("instruction_id_list", ())
        strict, loose = (sample[f"inst_level_{how}_acc"] if kinds else () for how in ("strict", "loose"))
        for kind, *both in zip(kinds, strict, loose, strict=True):
            for name in {kind, kind.partition(":")[0]}:
                followed.setdefault(name, []).append((both[0], both[1]))
    return {
        kind: {"n": len(values), "strict": fmean(s for s, _ in values), "loose": fmean(x for _, x in values)}
        for kind, values in sorted(followed.items())
    }


def more_is_better(task: Task, metric: str) -> bool:
    """Whether more of a metric is better, as the task says, or else by its name."""
    given = task.higher_is_better().get(metric)
    return given if given is not None else higher_is_better(metric) is not False


def chance(task: Task, metric: str) -> float | None:
    """The chance level: for choices the task's own metric over random scores, for generated answers 0, else None."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return 0.0 if task.OUTPUT_TYPE == "generate_until" and more_is_better(task, metric) else None
    by_item = _choices(task)
    if metric == "acc" and not callable(task.config.process_results):
        return sum(1 / len(instances) for instances in by_item) / len(by_item)
    draw = random.Random(SEED)
    return fmean(_level(task, metric, lambda _: -draw.random()) for _ in range(N_GUESSES))


def majority(task: Task, metric: str) -> float | None:
    """The metric of the best constant choice; None where the items do not all have the same choices (classes)."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    classes = {tuple(instance.args[1] for instance in instances) for instances in _choices(task)}
    if len(classes) != 1:
        return None
    scores = [lambda i, best=best: -float(i != best) for best in range(len(classes.pop()))]
    return (max if more_is_better(task, metric) else min)(_level(task, metric, s) for s in scores)


def _choices(task: Task) -> list[list[Any]]:
    """The requests of each item, one for each choice."""
    return [list(of_item) for _, of_item in groupby(task.instances, key=lambda instance: instance.doc_id)]


def _level(task: Task, metric: str, score: Callable[[int], float]) -> float:
    """The task's own metric where choice `i` of every item has the log-likelihood `score(i)`."""
    values = [
        task.process_results(instances[0].doc, [(score(i), False) for i in range(len(instances))])[metric]
        for instances in _choices(task)
    ]
    return float(task.aggregation()[metric](values))


def _values(task: Task, samples: Sequence[Mapping[str, Any]], metric: str) -> tuple[Any, Any]:
    """The metric's values of the items under the task's first filter, by their number, and what aggregates them."""
    first = samples[0]["filter"]
    values = [(sample["doc_id"], sample[metric]) for sample in samples if sample["filter"] == first]
    return values, task.aggregation()[metric]


def _text(task: Task, document: Any) -> str:
    text = task.doc_to_text(document)
    if isinstance(text, int):  # tasks whose prompts are the choices, such as winogrande
        text = task.doc_to_choice(document)[text]
    return str(text)


def _check_shots(tasks: Tasks) -> None:
    n_shot = tasks.suite.n_shot
    for name, task in tasks.tasks.items():
        if not n_shot or task.get_config("num_fewshot") == 0:
            continue
        n_examples, n_needed = len(task.fewshot_docs()), n_examples_needed(task, n_shot)
        if n_examples < n_needed:
            raise BenchmarkError(
                f"benchmark.n_shot={n_shot}: the data of task {name} have {n_examples} examples to draw from; "
                f"at most {n_examples - n_needed + n_shot} shots"
            )
