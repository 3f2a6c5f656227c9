"""What a run leaves for people: its loss curves, one self-contained page, and a short table in the terminal."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from instruct_lit.evaluation.answer_files import read_jsonl, read_metrics
from instruct_lit.evaluation.answer_parts import METRICS as PARTS
from instruct_lit.evaluation.forgetting import verdict
from instruct_lit.evaluation.metrics import BEYOND_SHARES, METRICS, WITHOUT_EXTRA, applicable, concerns, score
from instruct_lit.evaluation.statistics import paired_interval
from instruct_lit.reports import plots
from instruct_lit.reports.metrics import quantity
from instruct_lit.reports.pages import write_page
from instruct_lit.reports.tables import show, show_table

MAX_ROWS = 200
SUMMARY = (
    "val/loss", "test/loss", "test/exact_match", "general/loss", "tokens_per_s", "best_step", "stopped_early",
    "seconds",
)  # fmt: skip
FILES = {
    "report.html": "loss curves, metrics, responses",
    "loss.png": "loss curves",
    "responses.jsonl": "responses to the test split",
    "metrics.json": "all metrics",
    "bundle": "the model, a Hugging Face directory",
}


def plot_losses(run_dir: Path) -> None:
    """Draw training and validation loss to `loss.png` from `history.jsonl` and, for the best step, `metrics.json`."""
    plots.save(_loss_curves(run_dir), run_dir / "loss.png")


def write_report(
    run_dir: Path, differences: Sequence[tuple[str, Any, Any]], overrides: Sequence[str], name: str | None = None
) -> None:
    """Write `report.html` from the files in the run folder.

    Args:
        differences: (key, default, value) of the configuration; `name`, whose default has the time, is shown only if
            the command sets it.
        overrides: the arguments of the command.
        name: of the run; None: that of its folder.
    """
    rows = read_jsonl(run_dir / "responses.jsonl")
    for row in rows:
        row["right"], row["token_f1"] = bool(WITHOUT_EXTRA["exact_match"](row)), WITHOUT_EXTRA["token_f1"](row)
    families: dict[str, list[bool]] = {}
    for row in rows:
        if "family" in row:
            families.setdefault(row["family"], []).append(row["right"])
    metrics = read_metrics(run_dir)
    results_first = sorted(metrics.items(), key=lambda item: not item[0].startswith(("val/", "test/")))
    notes = run_dir / "data_notes.json"
    has_history = (run_dir / "history.jsonl").is_file()
    write_page(
        run_dir / "report.html",
        "run.html.jinja",
        name=name or run_dir.name,
        command=shlex.join(["python", "-m", "instruct_lit.train", *overrides]),
        metrics={name: value for name, value in results_first if not name.startswith("base/")},
        before={name.removeprefix("base/"): value for name, value in metrics.items() if name.startswith("base/")},
        quality=_quality(rows, metrics),
        rows=sorted(rows, key=lambda row: (row["right"], row["token_f1"]))[:MAX_ROWS],
        n_rows=len(rows),
        families={name: (sum(right), len(right)) for name, right in sorted(families.items())},
        data_notes=json.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else [],
        differences=[d for d in differences if d[0] != "name" or any(o.startswith("name=") for o in overrides)],
        has_tensorboard=(run_dir / "tensorboard").is_dir(),
        plot=plots.svg(_loss_curves(run_dir), "loss curves") if has_history else None,
    )


def print_summary(run_dir: Path, metrics: Mapping[str, Any]) -> None:
    """Print the main metrics and the files of the run folder."""
    rows = [(name, quantity(metrics[name], name)) for name in SUMMARY if name in metrics]
    before = {name: metrics[f"base/{name}"] for name in SUMMARY if f"base/{name}" in metrics}
    rows = [(n, f"{text}   (before fine-tuning {quantity(before[n], n)})" if n in before else text) for n, text in rows]
    rows += [(name, content) for name, content in FILES.items() if (run_dir / name).exists()]
    show(f"\n{run_dir}")
    show_table(("name", "value"), rows, header=False)
    if (run_dir / "tensorboard").exists():  # no row, since a long path would leave the names no room
        show(f"tensorboard --logdir {run_dir / 'tensorboard'}")


def _loss_curves(run_dir: Path) -> Any:
    file = run_dir / "config.yaml"
    is_dft = file.is_file() and yaml.safe_load(file.read_text(encoding="utf-8")).get("loss") == "dft"
    train = "training (DFT: each token times its probability)" if is_dft else "training"
    return plots.loss_curves(read_jsonl(run_dir / "history.jsonl"), read_metrics(run_dir).get("best_step"), train)


def _quality(rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each metric of responses that needs no extra, and what `forgetting` measures: after, before, and their change.

    `before`, the paired `change` and its `verdict` are missing where the base has not been evaluated.
    """
    found: list[dict[str, Any]] = []
    if rows:
        # The file has no finish reason of the base's responses.
        names = [*(name for name in WITHOUT_EXTRA if name != "ended"), *applicable(["checks", *PARTS], rows)]
        found = [{"metric": name, "after": value} for name, value in score(rows, names).items()]
    if rows and all("base_response" in row for row in rows):
        base_rows = [{**row, "response": row["base_response"]} for row in rows]
        before = score(base_rows, names)
        for item in found:
            name = item["metric"]
            pairs = [p for p in zip(rows, base_rows, strict=True) if all(concerns(name, row) for row in p)]
            if pairs:
                changes = np.array([METRICS[name](row) - METRICS[name](base) for row, base in pairs])
                change = paired_interval(changes, shares=name not in BEYOND_SHARES)
                item |= {"before": before[name], "change": change, "verdict": verdict(name, change)}
    for name in (key.removesuffix("_change") for key in metrics if key.endswith("_change")):
        change = {"mean": metrics[f"{name}_change"]} | {s: metrics.get(f"{name}_change_{s}") for s in ("low", "high")}
        sides = {"before": {"mean": metrics[f"base/{name}"]}, "after": {"mean": metrics[name]}}
        found.append({"metric": name, **sides, "change": change, "verdict": verdict(name, change)})
    return found
