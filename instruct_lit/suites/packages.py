"""Suites whose libraries run in environments of their own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from instruct_lit.suites import alpaca_eval, helm, openai_evals
from instruct_lit.suites.suite import Report, RunRequest, mean_of

if TYPE_CHECKING:
    from instruct_lit.suites.evaluated_model import EvaluatedModel

# Each module has `run(model, request)`, the figures by task, and `items_of(folder, task, metric)`.
SYSTEMS: dict[str, Any] = {"helm": helm, "openai_evals": openai_evals, "alpaca_eval": alpaca_eval}


def run_package(system: str, model: EvaluatedModel, request: RunRequest) -> Report:
    """Run one model through a library; the score is the mean over its tasks."""
    start, cut_before = time.perf_counter(), model.n_cut
    request.out_dir.mkdir(parents=True, exist_ok=True)
    figures = SYSTEMS[system].run(model, request)
    details = {"seconds": round(time.perf_counter() - start, 1), "n_prompts_cut": model.n_cut - cut_before}
    score = mean_of(list(figures.values()), "tasks")
    return Report(model.run, model.label, model.mode, score, {}, figures, details)
