"""python -m instruct_lit.report <folder of a sweep>: the trials of a sweep on one page, also while it is running.

`report runs=[a,b,c]` writes any runs side by side.
"""

import atexit
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from instruct_lit.config.compose import flat, run_command
from instruct_lit.config.run_ownership import missing_parents, remove_if_unused
from instruct_lit.config.schema.options import shown
from instruct_lit.errors import InstructLitError, quoted


def report(config: DictConfig) -> None:
    """Write the page of the sweep in `folder`, or of `runs`."""
    if config.runs is not None:
        print(write_runs(list(config.runs), Path(config.page)))
    else:
        print(write(Path(config.folder).expanduser(), config.metric, config.direction, config.n_best))


def write_runs(runs: list[str], page: Path) -> Path:
    """Write the page that compares finished runs, the first one with each of the others, and return its path."""
    from instruct_lit.config.run_folder import read_plain
    from instruct_lit.reports.runs_page import differing, write_runs_page
    from instruct_lit.sweeps.comparable import changes_loss

    folders = [Path(run).expanduser() for run in runs]
    configurations = [
        {key: shown(value) for key, value in flat(read_plain(folder / "config.yaml")).items()} for folder in folders
    ]
    own = [str(given.get("name") or run.name) for given, run in zip(configurations, folders, strict=True)]
    names = own if len(set(own)) == len(own) else [f"{n}. {name}" for n, name in enumerate(own, start=1)]
    incomparable = [key for key in differing(configurations) if changes_loss(key)]
    return write_runs_page(page, dict(zip(names, folders, strict=True)), configurations, incomparable)


def write(folder: Path, metric: str | None = None, direction: str | None = None, n_best: int = 3) -> Path:
    """Print the means over seeds, write the page and return its path; metric and direction are the sweep's by default.

    A loss that trials do not share, because they differ in what is masked, is replaced by one that they do.
    Raises: ConfigError for a metric that no trial has.
    """
    from instruct_lit.config.run_folder import plain_text, read_plain
    from instruct_lit.evaluation.metrics import higher_is_better
    from instruct_lit.sweeps.comparable import comparable_metric
    from instruct_lit.sweeps.page import write_page
    from instruct_lit.sweeps.statistics import print_settings
    from instruct_lit.sweeps.trials import read_trials, varied

    saved = folder / "multirun.yaml"
    sweep = read_plain(saved) if saved.is_file() else {}
    optimized = plain_text(sweep, "optimized_metric") or "value"
    ranked = metric or optimized
    if direction is None and ranked == optimized:
        direction = plain_text(sweep, "hydra.sweeper.direction")
    maximize = direction == "maximize" if direction else ranked != "value" and higher_is_better(ranked) is not False
    trials = read_trials(folder, maximize, None if ranked == optimized else ranked)
    instead = comparable_metric(varied(trials), ranked) if metric is None else None
    if instead is not None and any(instead in trial.metrics for trial in trials):
        trials, ranked, maximize = read_trials(folder, False, instead), instead, False
    print_settings(trials, ranked, maximize)
    return write_page(folder, trials, ranked, maximize, n_best)


def how_to_resume(folder: Path) -> None:
    """Print how to resume the sweep in a folder, if it has a trial: it was interrupted."""
    if any(folder.glob("*/trial.json")):
        print(f"interrupted; to resume, add hydra.sweep.dir={folder} to the same command", file=sys.stderr)


class SweepReport(Callback):
    """Hydra's callback that writes the page when a sweep has ended; exits with status 2 if every trial failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before the sweeper, which may refuse the trials."""
        if not Path(folder := config.hydra.sweep.dir).exists():
            remove_if_unused(folder, missing_parents(folder))
        atexit.register(how_to_resume, Path(folder))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra after the last trial."""
        from instruct_lit.sweeps.trials import all_failed

        atexit.unregister(how_to_resume)
        folder = Path(config.hydra.sweep.dir)
        try:
            print(f"report of the sweep: {write(folder)}")
        except InstructLitError:  # there are no trials
            return
        if (reason := all_failed(folder)) is not None:
            print(f"error: {folder}: every trial of the sweep failed, the first one with: {reason}", file=sys.stderr)
            sys.exit(2)  # Hydra turns exceptions of its callbacks into warnings


def main() -> None:
    """Entry point of the command; the folder may be given without its key."""
    if len(sys.argv) > 1 and "=" not in sys.argv[1] and not sys.argv[1].startswith("-"):
        sys.argv[1] = f"folder={quoted(sys.argv[1])}"
    run_command("report", report)


if __name__ == "__main__":
    main()
