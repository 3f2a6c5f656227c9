"""The report of a sweep: `report.html`, one self-contained page, and `trials.json`, its table."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instruct_lit.errors import ConfigError
from instruct_lit.reports import pages, plots
from instruct_lit.reports.metrics import bounds, number
from instruct_lit.reports.runs_page import side_by_side
from instruct_lit.sweeps.comparable import changes_loss, comparable_metric
from instruct_lit.sweeps.statistics import Setting, by_setting, importances, mean_and_interval, paired_difference
from instruct_lit.sweeps.trials import SEEDS, Trial, column_of, is_logarithmic, seeds_of, short, varied

MAX_RESPONSES = 40
COLUMNS = ("val/loss", "val/bits_per_byte", "test/loss", "test/exact_match", "n_steps")
STATUSES = ("completed", "pruned", "failed", "interrupted", "running")


def write_page(folder: Path, trials: Sequence[Trial], metric: str, maximize: bool, n_best: int = 3) -> Path:
    """Write `report.html` and `trials.json` into the folder of a sweep; return the page's path.

    Args:
        trials: sorted, the best first.
        n_best: of the best trials of so many settings the responses are shown side by side.
    """
    done = [trial for trial in trials if trial.value is not None]
    settings, names, missing = by_setting(trials, maximize), varied(trials), []
    ranks = [list(setting.trials.values()) for setting in settings] or [[trial] for trial in done]
    by_rank = zip(plots.rank_colours(len(ranks)), ranks, strict=True)
    colours = {trial.number: colour for colour, group in by_rank for trial in group}
    shares: Mapping[str, float] = {}
    table: list[tuple[Setting, dict[str, Any]]] = []
    paired = None
    try:
        table = [(s, mean_and_interval(list(s.values.values()), bounds(metric))) for s in settings]
        paired = paired_difference(*settings[:2]) if len(settings) > 1 else None
    except ConfigError as error:
        missing.append(str(error))
    try:
        shares = importances(trials)
    except ConfigError as error:
        missing.append(str(error))
    answered, of_one_seed = best_answered(ranks, n_best)
    counts = {status: n for status in STATUSES if (n := sum(trial.status == status for trial in trials))}
    columns = list(dict.fromkeys(comparable_metric(names, name) or name for name in COLUMNS))
    curve = comparable_metric(names, "val/loss") or "val/loss"
    path = folder / "report.html"
    pages.write_page(
        path,
        "page.html.jinja",
        Path(__file__).parent,
        name=folder.resolve().name,
        metric=metric,
        direction="largest" if maximize else "smallest",
        trials=trials,
        names=list(trials[0].parameters),
        columns=[name for name in columns if name != metric and any(name in trial.metrics for trial in trials)],
        best=done[0] if done else None,
        command=ranks[0][0].command_line(SEEDS if settings else ()) if ranks else "",
        counts=counts,
        settings=settings,
        table=table,
        paired=paired,
        incomparable=[name for name in names if changes_loss(name)],
        instead=comparable_metric(names, metric),
        plots=[plot for plot in (curves(trials, colours, curve), parallel_coordinates(done, metric, colours)) if plot],
        n_varied=len(names),
        importance=plots.svg(plots.importance(shares, metric), "importance of the hyper-parameters") if shares else "",
        missing="; ".join(missing),
        colours={number: plots.CSS.get(colour, colour) for number, colour in colours.items()},
        answered=answered,
        of_one_seed=of_one_seed,
        answers=side_by_side([trial.responses for trial in answered], MAX_RESPONSES),
        n_answers=min((len(trial.responses) for trial in answered), default=0),
        reports={trial.number for trial in trials if (folder / str(trial.number) / "report.html").is_file()},
        short=short,
    )
    rows = [
        {"trial": t.number, "status": t.status, "value": t.value, "reason": t.reason, "seconds": t.seconds}
        | {"parameters": t.parameters, "command": t.command_line()}
        for t in trials
    ]
    (folder / "trials.json").write_text(json.dumps({"metric": metric, "trials": rows}, indent=2) + "\n")
    return path


def curves(trials: Sequence[Trial], colours: dict[int, str], metric: str = "val/loss") -> str:
    """A validation metric of every trial as SVG; empty when none has a curve."""
    lines = [line for trial in trials if (line := _line(trial, colours, metric)).points]
    return plots.svg(plots.trial_curves(lines, metric), f"{metric} of every trial", lines) if lines else ""


def parallel_coordinates(done: Sequence[Trial], metric: str, colours: dict[int, str]) -> str:
    """Parameters and metric of every trial with a value as SVG; empty for one trial or without a varied parameter."""
    columns = {name: column_of(done, name) for name in varied(done)}
    if len(done) < 2 or not columns:
        return ""
    logarithmic = {name for name, column in columns.items() if is_logarithmic(column)}
    values: list[float] = [trial.value for trial in done if trial.value is not None]
    lines = [_line(trial, colours) for trial in done]
    figure = plots.parallel_coordinates(lines, {**columns, metric: values}, logarithmic)
    return plots.svg(figure, "parallel coordinates of the trials", lines)


def best_answered(settings: Sequence[Sequence[Trial]], n_best: int) -> tuple[list[Trial], bool]:
    """The best trial with responses of each of the best settings, and whether they are limited to one seed.

    They are those with the seed of the best one where the trials have no test example in common, since the seed may
    decide the split.
    """
    answered = [with_some for trials in settings if (with_some := [t for t in trials if t.responses])]
    best = [trials[0] for trials in answered[:n_best]]
    if len(best) < 2 or side_by_side([trial.responses for trial in best]):
        return best, False
    return [t for trials in answered for t in trials if seeds_of(t) == seeds_of(best[0])][:n_best], True


def _line(trial: Trial, colours: dict[int, str], metric: str = "val/loss") -> plots.TrialLine:
    settings = " ".join(f"{name}={short(value)}" for name, value in trial.parameters.items())
    note = f"trial {trial.number}: {number(trial.value) or trial.status}  {settings}"
    colour = colours.get(trial.number, plots.GRAY)
    return plots.TrialLine(trial.number, colour, trial.curve(metric), note, dashed=trial.status == "pruned")
