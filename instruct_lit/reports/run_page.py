"""What a person looks at after a run: the loss curves, one self-contained page, a short table in the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instruct_lit.core.generation.responses import read_jsonl
from instruct_lit.core.jinja_environments import html_environment
from instruct_lit.evaluation.metrics import WITHOUT_EXTRA, Interval, exact, score, token_f1

BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#777777"  # told apart by colour-blind eyes


def plot_losses(run_dir: Path) -> None:
    """Draw training and validation loss over optimizer steps to `loss.png`, the step whose weights were kept marked.

    The upper axis counts supervised tokens; the part after the best step is shaded. Needs `history.jsonl`, and
    `metrics.json` to know that step; without it that of the lowest loss is marked.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    history = read_jsonl(run_dir / "history.jsonl")
    train = [(row["step"], row["train/loss"]) for row in history if "train/loss" in row]
    val = [(row["step"], row["val/loss"]) for row in history if "val/loss" in row and math.isfinite(row["val/loss"])]
    metrics = run_dir / "metrics.json"
    best_step = json.loads(metrics.read_text()).get("best_step") if metrics.is_file() else None
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if train:
        train_steps, train_losses = zip(*train, strict=True)
        axes.plot(train_steps, train_losses, color=BLUE, alpha=0.25, linewidth=1)
        axes.plot(train_steps, _smooth(train_losses), color=BLUE, linewidth=1.8, label="training")
    if val:
        steps, losses = zip(*val, strict=True)
        axes.plot(steps, losses, "o-", color=ORANGE, markersize=4, linewidth=1.8, label="validation")
    marked = [point for point in val if best_step in (None, point[0])]
    if marked:
        step, loss = min(marked, key=lambda point: point[1])
        axes.axvline(step, color=GRAY, linestyle=":", linewidth=1)
        axes.plot([step], [loss], marker="*", markersize=14, color=ORANGE, markeredgecolor="black", zorder=5)
        side = -1 if step > 0.8 * steps[-1] else 1  # the note stays inside the axes
        note, edge = f"best {loss:.3f}\nstep {step}", "right" if side < 0 else "left"
        axes.annotate(note, (step, loss), xytext=(8 * side, 14), textcoords="offset points", ha=edge)
        if steps[-1] > step:
            axes.axvspan(step, steps[-1], color=ORANGE, alpha=0.07, label="after the best step")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.2)
    axes.spines[["right"]].set_visible(False)
    if train or val:
        axes.legend(frameon=False)
    last = history[-1] if history else {"step": 0, "tokens": 0}
    if last["step"] and last["tokens"]:
        ratio = last["tokens"] / last["step"]
        upper = axes.secondary_xaxis(
            "top", functions=(lambda x: np.asarray(x) * ratio, lambda x: np.asarray(x) / ratio)
        )
        upper.set_xlabel("supervised tokens seen")
    figure.savefig(run_dir / "loss.png")


def write_report(run_dir: Path, differences: Sequence[tuple[str, Any, Any]], overrides: Sequence[str]) -> None:
    """Write `report.html`, one page without outside resources, from what lies in the run folder."""
    import base64

    template = html_environment(Path(__file__).parent).get_template("run.html.jinja")
    rows = read_jsonl(run_dir / "responses.jsonl")
    for row in rows:
        row["right"], row["token_f1"] = bool(exact(row)), token_f1(row)
    families: dict[str, list[bool]] = {}
    for row in rows:
        if "family" in row:
            families.setdefault(row["family"], []).append(row["right"])
    plot, metrics = run_dir / "loss.png", _metrics(run_dir)
    page = template.render(
        name=run_dir.name,
        command=" ".join(["python -m instruct_lit.train", *overrides]),
        metrics={k: _number(v) for k, v in _in_order(metrics) if not k.startswith("base/")},
        before={k.removeprefix("base/"): _number(v) for k, v in metrics.items() if k.startswith("base/")},
        explained=EXPLAINED,
        quality=_quality(rows),
        rows=sorted(rows, key=lambda row: (row["right"], row["token_f1"]))[:MAX_ROWS],
        n_rows=len(rows),
        families={name: (sum(right), len(right)) for name, right in sorted(families.items())},
        differences=differences,
        plot=base64.b64encode(plot.read_bytes()).decode() if plot.exists() else None,
    )
    (run_dir / "report.html").write_text(page, encoding="utf-8")


def _quality(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, Interval, Interval | None]]:
    """Each metric of the answers that needs no extra: its name, its mean with interval, and that before fine-tuning."""
    if not rows:
        return []
    names = [name for name in WITHOUT_EXTRA if name != "ended"]  # why an answer ended before is not in the file
    after, before = score(rows, names), {}
    if all("base_response" in row for row in rows):
        before = score([{**row, "response": row["base_response"]} for row in rows], names)
    return [(name, after[name], before.get(name)) for name in names]


def _in_order(metrics: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What was learnt before what it took."""
    return sorted(metrics.items(), key=lambda item: not item[0].startswith(("val/", "test/")))


MAX_ROWS = 200
EXPLAINED = {
    "val/loss": "mean loss of a supervised validation token, in nats; early stopping watches it",
    "val/perplexity": "exp of it: as uncertain as a fair choice among so many tokens",
    "val/response_loss": "the same over response tokens only, whatever was masked in training",
    "val/bits_per_byte": "bits needed per byte of response text; comparable between tokenizers",
    "test/loss": "loss on the test set with the best weights",
    "test/exact_match": "share of test answers equal to the wanted ones",
    "train/tokens": "supervised tokens that went into optimizer steps",
    "tokens_per_s": "useful tokens (no padding) per second of training",
    "positions_per_token": "computed positions per useful token: padding adds, a shared prefix takes away",
    "flop_utilisation": "matrix work the examples need, against the device's measured rate",
    "waiting_s": "time the training loop waited for data",
    "peak_memory_bytes": "largest memory in use",
    "test/perplexity": "exp of test/loss",
    "val/exact_match": "share of validation answers equal to the wanted ones",
    "training_s": "seconds in training steps, without validation and answers",
    "seconds": "seconds from start to end",
    "matrix_flops_per_s": "rate of this device's matrix products, measured after training",
    "interrupted": "Ctrl-C ended the run",
    "n_steps": "optimizer steps",
    "best_step": "the step whose weights were kept",
    "stopped_early": "early stopping ended the run",
}


def print_summary(run_dir: Path, metrics: Mapping[str, Any]) -> None:
    """Print the main figures and where each file is."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name in ("val/loss", "test/loss", "test/exact_match", "tokens_per_s", "stopped_early", "seconds"):
        if name in metrics:
            before = metrics.get(f"base/{name}")
            text = _number(metrics[name])
            table.add_row(name, f"{text}   (before fine-tuning {_number(before)})" if before is not None else text)
    files = {
        "report.html": "curves, metrics, answers",
        "loss.png": "the curves alone",
        "responses.jsonl": "answers to the test set",
        "metrics.json": "all figures",
        "bundle": "the model, a Hugging Face directory",
        "tensorboard": "tensorboard --logdir",
    }
    for name, what in files.items():
        if (run_dir / name).exists():
            table.add_row(name, what)
    console = Console()
    console.print()
    console.print(f"[bold]{run_dir}[/bold]", highlight=False, soft_wrap=True)
    console.print(table)


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}"


def _smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average without the lag of its start."""
    smoothed, average, weight = [], 0.0, 0.0
    for value in values:
        average, weight = 0.8 * average + 0.2 * value, 0.8 * weight + 0.2
        smoothed.append(average / weight)
    return smoothed


def _metrics(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "metrics.json"
    return json.loads(path.read_text()) if path.exists() else {}
