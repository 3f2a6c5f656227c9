"""python -m instruct_lit.benchmark: run finished models through a public benchmark."""

import os
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from instruct_lit.config.compose import output_dir, run_command
from instruct_lit.optional_imports import need


def benchmark(config: DictConfig) -> float:
    """Run every model of `run` through the suite; return the first one's score, or that of its first task."""
    out_dir = output_dir()
    if config.benchmark.data_dir is not None:  # read when the libraries are imported
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if config.suite.system == "lm_eval":
        need("lm_eval", f"suite={config.suite.name}", "benchmark")

    from instruct_lit.config import benchmark_builders as build
    from instruct_lit.suites.run import rate, run_benchmark

    if config.suite.system == "arena":
        return rate(config.suite.name, Path(config.suite.options.battles).expanduser(), out_dir)
    from instruct_lit.reports.tables import print_records, table_alone
    from instruct_lit.suites.results import records_of

    about = {"limit": config.benchmark.limit, "n_shot": config.benchmark.n_shot}
    models, training_of = build.evaluated_models(config), partial(build.training_of_run, config)
    with table_alone(config.format):
        reports = run_benchmark(models, build.request_of(config, out_dir), training_of, about)
    print_records(records_of(reports), config.format)
    figures = (reports[0].score, *reports[0].tasks.values())
    return next(figure.value for figure in figures if figure.value is not None)


if __name__ == "__main__":
    run_command("benchmark", benchmark)
