"""Any runs side by side: what differs in their configurations, curves, metrics, paired differences, and responses."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from instruct_lit.errors import InstructLitError
from instruct_lit.evaluation.answer_files import read_jsonl, read_metrics, read_responses
from instruct_lit.evaluation.comparison import compare_rows
from instruct_lit.evaluation.forgetting import verdict
from instruct_lit.evaluation.metrics import WITHOUT_EXTRA, Row, exact
from instruct_lit.reports import plots
from instruct_lit.reports.pages import write_page

MAX_RESPONSES = 100
_OF_A_RUN = ("dirpath", "save_dir", "offline_directory", "default_root_dir", "ckpt_path")  # differ always
METRICS = ("val/", "test/", "n_steps", "best_step", "train/tokens", "tokens_per_s", "peak_memory_bytes", "seconds")


def write_runs_page(
    path: Path, runs: Mapping[str, Path], configurations: Sequence[Mapping[str, Any]], incomparable: Sequence[str] = ()
) -> Path:
    """Write the page of the runs, by name; the first one is what the others are compared with.

    Args:
        configurations: of each run, flat.
        incomparable: keys in which the runs differ so that their losses cover different tokens.
    """
    histories = {name: read_jsonl(run / "history.jsonl") for name, run in runs.items()}
    metrics = [read_metrics(run) for run in runs.values()]
    found = sorted({name for of_run in metrics for name in of_run})
    names = [name for start in METRICS for name in found if name.startswith(start)]
    responses = {name: _responses(run) for name, run in runs.items()}
    curve = "val/response_loss" if incomparable else "val/loss"
    figures = [
        plots.svg(plots.run_curves(histories, curve, x, label), f"{curve} over {label}")
        for x, label in (("step", "optimizer steps"), ("tokens", "supervised tokens"))
        if any(curve in row for rows in histories.values() for row in rows)
    ]
    write_page(
        path,
        "runs.html.jinja",
        runs={name: str(run) for name, run in runs.items()},
        colours={n: plots.CSS.get(colour, colour) for n, colour in zip(runs, cycle(plots.RUN_COLOURS), strict=False)},
        incomparable=incomparable,
        differing=differing(configurations),
        metrics={name: [of_run.get(name) for of_run in metrics] for name in names},
        plots=figures,
        comparisons=paired(responses),
        verdict=verdict,
        answers=side_by_side(list(responses.values())),
    )
    return path


def differing(configurations: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The values of each key in which configurations differ, without folders and names of the runs."""
    keys = dict.fromkeys(key for configuration in configurations for key in configuration)
    values = {key: [configuration.get(key, "") for configuration in configurations] for key in keys}
    return {
        key: found
        for key, found in values.items()
        if any(value != found[0] for value in found)
        and not (key.endswith(_OF_A_RUN) or key.startswith(("name", "paths.", "logger.")))
    }


def paired(responses: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """For each run but the first its differences from the first on common examples, or why there are none."""
    (_, base), *others = responses.items()
    found: dict[str, Any] = {}
    for name, rows in others:
        try:
            found[name] = compare_rows(rows, base, [metric for metric in WITHOUT_EXTRA if metric != "ended"])[1]
        except InstructLitError as error:
            found[name] = str(error)
    return found


def side_by_side(responses: Sequence[Sequence[Row]], most: int = MAX_RESPONSES) -> list[dict[str, Any]]:
    """At most so many examples that all runs responded to, with their responses; those on which they differ first."""
    by_text = [{(row["instruction"], row["input"], str(row.get("history"))): row for row in rows} for rows in responses]
    rows = []
    for key, row in by_text[0].items() if by_text else ():
        if all(key in found for found in by_text):
            answers = [(found[key]["response"], bool(exact(found[key]))) for found in by_text]
            rows.append({"example": row, "answers": answers, "differ": len(set(answers)) > 1})
    return sorted(rows, key=lambda row: not row["differ"])[:most]


def _responses(run: Path) -> list[Row]:
    path = run / "responses.jsonl"
    return list(read_responses(path, "response")) if path.is_file() and path.stat().st_size else []
