"""What a run leaves for people: its loss curves, one self-contained page, and a short table in the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instruct_lit.core.generation.responses import read_jsonl
from instruct_lit.evaluation.metrics import WITHOUT_EXTRA, exact, score, token_f1
from instruct_lit.evaluation.statistics import Interval
from instruct_lit.reports import plots
from instruct_lit.reports.pages import number, write_page
from instruct_lit.reports.tables import show, table

MAX_ROWS = 200
MEANINGS = {
    "val/loss": "mean loss per supervised validation token (nats); early stopping monitors it by default",
    "val/perplexity": "exp(val/loss)",
    "val/response_loss": "the same over response tokens only, whether or not prompts were masked in training",
    "val/bits_per_byte": "bits per byte of response text; comparable between tokenizers",
    "val/exact_match": "share of validation responses equal to the reference",
    "test/loss": "mean loss per supervised test token with the best weights (nats)",
    "test/perplexity": "exp(test/loss)",
    "test/exact_match": "share of test responses equal to the reference",
    "train/tokens": "supervised tokens in all optimizer steps",
    "tokens_per_s": "tokens without padding per second of training",
    "positions_per_token": "computed positions per token: padding adds to it, a shared prefix lowers it",
    "flop_utilisation": "floating-point operations that the examples need, relative to the measured peak of the device",
    "matrix_flops_per_s": "measured rate of matrix products on this device",
    "waiting_s": "seconds in which training waited for data",
    "training_s": "seconds in optimizer steps, without validation and generation",
    "seconds": "seconds from start to end",
    "peak_memory_bytes": "peak memory",
    "interrupted": "the run was ended by a signal",
    "n_steps": "optimizer steps",
    "best_step": "step of the saved weights",
    "stopped_early": "early stopping ended the run",
}
SUMMARY = ("val/loss", "test/loss", "test/exact_match", "tokens_per_s", "stopped_early", "seconds")
FILES = {
    "report.html": "loss curves, metrics, responses",
    "loss.png": "loss curves",
    "responses.jsonl": "responses to the test split",
    "metrics.json": "all metrics",
    "bundle": "the model, a Hugging Face directory",
    "tensorboard": "tensorboard --logdir",
}


def plot_losses(run_dir: Path) -> None:
    """Draw training and validation loss to `loss.png` from `history.jsonl` and, for the best step, `metrics.json`."""
    plots.save(_loss_curves(run_dir), run_dir / "loss.png")


def write_report(run_dir: Path, differences: Sequence[tuple[str, Any, Any]], overrides: Sequence[str]) -> None:
    """Write `report.html` from the files in the run folder.

    Args:
        differences: (key, default, value) of the configuration.
        overrides: the arguments of the command.
    """
    rows = read_jsonl(run_dir / "responses.jsonl")
    for row in rows:
        row["right"], row["token_f1"] = bool(exact(row)), token_f1(row)
    families: dict[str, list[bool]] = {}
    for row in rows:
        if "family" in row:
            families.setdefault(row["family"], []).append(row["right"])
    metrics = _metrics(run_dir)
    results_first = sorted(metrics.items(), key=lambda item: not item[0].startswith(("val/", "test/")))
    notes = run_dir / "data_notes.json"
    has_history = (run_dir / "history.jsonl").is_file()
    write_page(
        run_dir / "report.html",
        "run.html.jinja",
        name=run_dir.name,
        command=" ".join(["python -m instruct_lit.train", *overrides]),
        metrics={name: value for name, value in results_first if not name.startswith("base/")},
        before={name.removeprefix("base/"): value for name, value in metrics.items() if name.startswith("base/")},
        explained=MEANINGS,
        quality=_quality(rows),
        rows=sorted(rows, key=lambda row: (row["right"], row["token_f1"]))[:MAX_ROWS],
        n_rows=len(rows),
        families={name: (sum(right), len(right)) for name, right in sorted(families.items())},
        data_notes=json.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else [],
        differences=differences,
        plot=plots.svg(_loss_curves(run_dir), "loss curves") if has_history else None,
    )


def print_summary(run_dir: Path, metrics: Mapping[str, Any]) -> None:
    """Print the main metrics and the files of the run folder."""
    summary = table("name", "value", header=False)
    for name in SUMMARY:
        if name in metrics:
            before = metrics.get(f"base/{name}")
            text = number(metrics[name])
            summary.add_row(name, f"{text}   (before fine-tuning {number(before)})" if before is not None else text)
    for name, content in FILES.items():
        if (run_dir / name).exists():
            summary.add_row(name, content)
    show(f"\n{run_dir}")
    show(summary)


def _loss_curves(run_dir: Path) -> Any:
    return plots.loss_curves(read_jsonl(run_dir / "history.jsonl"), _metrics(run_dir).get("best_step"))


def _quality(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, Interval, Interval | None]]:
    """(metric, interval, interval before fine-tuning) for each metric of responses that needs no extra."""
    if not rows:
        return []
    names = [name for name in WITHOUT_EXTRA if name != "ended"]  # the file has no finish reason of the base's responses
    after, before = score(rows, names), {}
    if all("base_response" in row for row in rows):
        before = score([{**row, "response": row["base_response"]} for row in rows], names)
    return [(name, after[name], before.get(name)) for name in names]


def _metrics(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "metrics.json"
    return json.loads(path.read_text()) if path.exists() else {}
