"""Suites that run through packages of their own, each in an environment of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from instruct_lit.suites import alpaca_eval, helm, openai_evals
from instruct_lit.suites.suite import Figure, Report, RunRequest, mean_of

if TYPE_CHECKING:
    from instruct_lit.suites.harness_model import EvaluatedModel

SYSTEMS: dict[str, Callable[[EvaluatedModel, RunRequest], dict[str, Figure]]] = {
    "helm": helm.run,
    "openai_evals": openai_evals.run,
    "alpaca_eval": alpaca_eval.run,
}


def run_package(system: str, subject: EvaluatedModel, asked: RunRequest, run: str, label: str, template: str) -> Report:
    """Run one model through a system; its figures are averaged over tasks."""
    start, cut_before = time.perf_counter(), subject.n_cut
    asked.out_dir.mkdir(parents=True, exist_ok=True)
    figures = SYSTEMS[system](subject, asked)
    details = {"seconds": round(time.perf_counter() - start, 1), "n_prompts_cut": subject.n_cut - cut_before}
    return Report(run, label, template, mean_of(list(figures.values()), "tasks"), {}, figures, details)
