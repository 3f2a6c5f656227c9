"""Every plot of the program, in one style: saved as PNG, or as SVG inside a page, where it takes the page's colours.

A function returns a matplotlib figure of plain numbers; `save` and `svg` write it.
"""

import io
import math
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

# Blue and orange are distinct for colour-blind readers (Okabe and Ito 2008).
BLUE, ORANGE, GRAY = "#0072b2", "#d55e00", "#808080"
TEXT, LINE, PAPER = "#1f2328", "#d0d7de", "#fffffe"
CSS = {TEXT: "currentColor", LINE: "var(--line)", PAPER: "var(--paper)", BLUE: "var(--blue)", ORANGE: "var(--orange)"}
RUN_COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", GRAY, "#8c6d31")
_RANKS = LinearSegmentedColormap.from_list("ranks", [BLUE, "#968ca0", ORANGE])
_BOX = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0}  # behind a text that lines may cross
_WIDTH = 9.0  # inches, the width of a page's column


@dataclass(frozen=True)
class TrialLine:
    """One trial of a sweep in a plot; `points` are (x, y), `note` is its tooltip on a page."""

    number: int
    colour: str
    points: Sequence[tuple[float, float]]
    note: str = ""
    dashed: bool = False


def save(figure: Figure, path: Path) -> None:
    """Write a figure, with a font of this machine for characters that matplotlib's own does not have."""
    with warnings.catch_warnings(record=True) as found:
        warnings.filterwarnings("always", "Glyph .* missing from font")
        figure.savefig(path, dpi=130)
    missing = sorted({int(n) for warning in found for n in re.findall(r"^Glyph (\d+)", str(warning.message))})
    fonts = (f for f in fontManager.ttflist if all(map(get_font(f.fname).get_char_index, missing)))
    names = [f.name for f in fonts if not f.name.startswith("Last Resort")] if missing else []  # it has boxes alone
    for text in figure.findobj(Text) if names else ():
        text.set_fontfamily(["DejaVu Sans", names[0]])
    if names:
        figure.savefig(path, dpi=130)
    elif missing:
        warnings.warn(f"{path}: no font has {''.join(map(chr, missing[:20]))}; install a Noto font", stacklevel=2)


def svg(figure: Figure, name: str, lines: Sequence[TrialLine] = ()) -> str:
    """The figure as an SVG element for a page; `name` is unique on the page.

    The lines of trials carry `data-trial` and their note as tooltip.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser's fonts have it
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    view_box: Any = re.search(r'viewBox="[^"]*"', text)
    body = text[text.index(">", view_box.end()) + 1 :]
    body = re.sub(r'<g id="(?!trial-)[^"]*"', "<g", body)
    for line in lines:
        group = f'<g data-trial="{line.number}"><title>{escape(line.note)}</title>'
        body = body.replace(f'<g id="trial-{line.number}">', group)
    for colour, variable in CSS.items():
        body = body.replace(colour, variable)
    return f'<svg {view_box[0]} role="img" aria-label="{escape(name)}">{body}'


def rank_colours(n: int) -> list[str]:
    """A colour for each of `n` ranks, from blue for the best to orange for the worst."""
    return [to_hex(_RANKS(rank / max(1, n - 1))) for rank in range(n)]


def loss_curves(history: Sequence[Mapping[str, Any]], best_step: int | None, train: str = "training") -> Figure:
    """Training and validation loss over optimizer steps, the step of the saved weights marked.

    `history` has rows with `step`, `tokens`, `train/loss` and `val/loss`. The upper axis counts supervised tokens, the
    steps after the best one are shaded. Without `best_step` the lowest validation loss is marked. A validation loss
    before the first step that is far above the rest stands in the legend instead of stretching the axis. `train` names
    the training loss.
    """
    trained = _points(history, "train/loss")
    val = _points(history, "val/loss")
    shown = " and ".join(name for name, points in (("training", trained), ("validation", val)) if points)
    figure, axes = _figure(f"{shown} loss".strip().capitalize(), "optimizer step", "loss (nats per token)")
    if trained:
        steps, losses = zip(*trained, strict=True)
        axes.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=1)
        axes.plot(steps, _smooth(losses), "o-" if len(trained) == 1 else "-", color=BLUE, label=f"{train}, smoothed")
    rest = [loss for step, loss in [*trained, *val] if step > 0]
    start = next((loss for step, loss in val if step == 0), -math.inf)
    label, span = "validation", max(rest, default=0.0) - min(rest, default=0.0)
    if rest and start > max(rest) + span:
        margin = 0.1 * (span or 1.0)
        axes.set_ylim(min(rest) - margin, max(rest) + margin)
        label = f"validation, {start:.3f} at step 0"
    if val:
        axes.plot(*zip(*val, strict=True), "o-", color=ORANGE, markersize=4, label=label)
    marked = [point for point in val if best_step in (None, point[0])]
    if marked:
        step, loss = min(marked, key=lambda point: point[1])
        axes.axvline(step, color=GRAY, linestyle=":", linewidth=1)
        star: dict[str, Any] = {"markersize": 13, "color": ORANGE, "markeredgecolor": TEXT, "zorder": 5}
        axes.plot([step], [loss], "*", label=f"best {loss:.3f}, step {step:,}", **star)
        if val[-1][0] > step:
            axes.axvspan(step, val[-1][0], color=ORANGE, alpha=0.08, linewidth=0, label="after the best step")
    end = history[-1] if history else {"step": 0, "tokens": 0}
    if end["step"] and end["tokens"]:
        ratio = end["tokens"] / end["step"]
        conversions = (lambda x: np.asarray(x) * ratio, lambda x: np.asarray(x) / ratio)
        upper = axes.secondary_xaxis("top", functions=conversions)
        upper.set_xlabel("supervised tokens", color=TEXT)
        upper.tick_params(colors=TEXT)
        _counts(upper.xaxis)
        upper.spines["top"].set_color(LINE)
    _counts(axes.xaxis)
    _legend(axes)
    return figure


def trial_curves(lines: Sequence[TrialLine], metric: str = "val/loss") -> Figure:
    """A validation loss of every trial over optimizer steps, the first lines on top."""
    losses = [loss for line in lines for _, loss in line.points]
    unit = "bits per byte" if metric.endswith("bits_per_byte") else "nats per token"
    figure, axes = _figure(f"{metric} of every trial", "optimizer step", f"{metric} ({unit})")
    if min(losses) > 0 and max(losses) / min(losses) > 4:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    _trial_lines(axes, lines)
    for line in lines:
        axes.plot(*line.points[-1], "o", color=line.colour, markersize=4)
    _counts(axes.xaxis)
    for label, style in (("completed", "-"), ("pruned", "--")):
        axes.plot([], [], style, color=GRAY, label=label)
    if any(line.dashed for line in lines):
        _legend(axes)
    return figure


def run_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]], metric: str, x: str, x_label: str) -> Figure:
    """A validation metric of each run, by name, over the column `x` of its history."""
    figure, axes = _figure(f"{metric} over {x_label}", x_label, f"{metric} (nats per token)", 3.8)
    styles = cycle((style, colour) for style in ("o-", "o--") for colour in RUN_COLOURS)
    for (style, colour), (name, history) in zip(styles, histories.items(), strict=False):
        if points := _points(history, metric, x):
            axes.plot(*zip(*points, strict=True), style, color=colour, markersize=3, label=_name(name))
    _counts(axes.xaxis)
    _legend(axes)
    return figure


def parallel_coordinates(
    lines: Sequence[TrialLine], columns: Mapping[str, Sequence[float] | Sequence[str]], logarithmic: Collection[str]
) -> Figure:
    """A vertical axis for each column, and across them a line for each trial; `lines` need no points of their own.

    A column has a value for each line, numbers or names; the `logarithmic` columns are laid out so.
    """
    figure, axes = _figure("Parallel coordinates of the trials", "", "")
    axes.set_axis_off()
    axes.set_xlim(-0.3, len(columns) - 0.7)
    axes.set_ylim(-0.06, 1.12)
    heights = []
    for x, (name, column) in enumerate(columns.items()):
        found, ticks = _scaled(column, name in logarithmic)
        heights.append(found)
        axes.plot([x, x], [0, 1], color=GRAY, linewidth=1)
        axes.text(x, 1.06, _name(name), ha="center", color=TEXT, fontweight="bold")
        side = -1 if x == 0 else 1  # no line lies outside of the first and the last axis
        for y, label in ticks:
            _note(axes, _name(label), (x, y), 6 * side, "right" if x == 0 else "left")
    places = list(zip(*heights, strict=True))
    drawn = [TrialLine(l.number, l.colour, list(enumerate(p))) for l, p in zip(lines, places, strict=True)]  # noqa: E741
    _trial_lines(axes, drawn)
    return figure


def importance(shares: Mapping[str, float], metric: str) -> Figure:
    """A bar for the share of the metric's variance that each hyper-parameter explains."""
    names = [_name(name) for name in shares]
    label = "share of the variance explained (%)"
    figure, axes = _figure(f"Importance for {metric}", label, "", 1.3 + 0.32 * len(names))
    axes.barh(names, [100 * share for share in shares.values()], color=BLUE, height=0.6)
    for y, share in enumerate(shares.values()):
        _note(axes, f"{share:.0%}", (100 * share, y), 4, "left")
    axes.set_xlim(0, 108)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    return figure


def leaderboard(
    models: Sequence[str], ratings: Sequence[float], intervals: Sequence[tuple[float, float]], wins: np.ndarray
) -> Figure:
    """Ratings with their 95 % intervals on the left, on the right who beats whom, in the same order.

    `wins[a, b]` is the share that model `a` wins against `b`, NaN where they have not met.
    """
    models = [_name(model) for model in models]
    n = len(models)
    figure = Figure(figsize=(11, 1.9 + 0.42 * n), layout="constrained")
    left, right = figure.subplots(1, 2)
    _style(left, "Ratings", "Bradley–Terry rating (Elo scale), 95 % interval", "")
    _style(right, "Share of battles that the row's model wins", "", "")
    spread = [[max(0.0, r - low), max(0.0, high - r)] for r, (low, high) in zip(ratings, intervals, strict=True)]
    left.errorbar(ratings, range(n), xerr=np.array(spread).T, fmt="o", color=BLUE, ecolor=GRAY, capsize=3)
    left.set_yticks(range(n), models)
    left.set_ylim(n - 0.5, -0.5)
    right.imshow(wins, vmin=0, vmax=1, cmap="RdBu", aspect="auto")
    right.grid(visible=False)
    if n <= 20:
        for i, j in np.argwhere(~np.isnan(wins)):
            shade = "white" if abs(wins[i, j] - 0.5) > 0.35 else "black"
            right.text(j, i, f"{wins[i, j]:.0%}", ha="center", va="center", fontsize=8 if n <= 10 else 5.5, color=shade)
    right.set_yticks(range(n), models)
    right.set_xticks(range(n), models, rotation=45, ha="right")
    return figure


def category_scores(metric: str, by: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """The mean of a metric with its 95 % interval for each value of each field; `by` has them by field and value."""
    names, values = [], []
    for field, of_value in by.items():
        names += [f"{_name(f'{field}: {value}')} (n = {numbers['n']})" for value, numbers in of_value.items()]
        values += list(of_value.values())
    figure, axes = _figure(f"{metric} by category", f"{metric}, 95 % interval", "", 1.3 + 0.32 * len(names))
    for y, value in enumerate(values):
        if value["low"] is not None:
            axes.plot([value["low"], value["high"]], [y, y], color=GRAY, linewidth=2)
    axes.plot([value["mean"] for value in values], range(len(values)), "o", color=BLUE)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    return figure


def learning_rate_range(rates: Sequence[float], losses: Sequence[float], suggestion: float) -> Figure:
    """The smoothed loss over a growing learning rate, the suggestion marked."""
    figure, axes = _figure("Learning rate range test", "learning rate", "training loss (nats per token)", 4.2)
    axes.set_xscale("log")
    axes.plot(rates, losses, color=BLUE, label="training, smoothed")
    axes.axvline(suggestion, color=ORANGE, linestyle="--", label=f"optimizer.lr={suggestion:.2g}")
    _legend(axes)
    return figure


def _figure(title: str, x_label: str, y_label: str, height: float = 4.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    _style(axes, title, x_label, y_label)
    return figure, axes


def _style(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """The colours, grid and texts of every plot; set here and not in `rcParams`, which threads share."""
    title, x_label, y_label = (text.replace("$", r"\$") for text in (title, x_label, y_label))
    axes.set_title(title, color=TEXT, fontsize=11, loc="left")
    axes.set_xlabel(x_label, color=TEXT)
    axes.set_ylabel(y_label, color=TEXT)
    axes.tick_params(which="both", colors=TEXT)
    axes.grid(color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)


def _name(text: str) -> str:
    """A name in one line, without its middle where it is long, and no formula."""
    line = " ".join(text.split())
    return (f"{line[:20]} … {line[-20:]}" if len(line) > 44 else line).replace("$", r"\$")


def _legend(axes: Axes) -> None:
    """A legend where it covers least, on paper."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(facecolor=PAPER, edgecolor="none", labelcolor=TEXT, loc="best")


def _counts(axis: Axis) -> None:
    """Ticks at whole numbers."""
    axis.set_major_locator(MaxNLocator("auto", integer=True, steps=(1, 2, 5, 10), min_n_ticks=1))
    axis.set_major_formatter("{x:,.0f}")


def _note(axes: Axes, text: str, at: tuple[float, float], right: float, ha: str) -> None:
    """A text beside a point, `right` points away."""
    style: dict[str, Any] = {"ha": ha, "va": "center", "color": TEXT, "fontsize": 9, "bbox": _BOX}
    axes.annotate(text, at, xytext=(right, 0), textcoords="offset points", **style)


def _trial_lines(axes: Axes, lines: Sequence[TrialLine]) -> None:
    for line in reversed(lines):  # the best on top
        style = "--" if line.dashed else "-"
        axes.plot(*zip(*line.points, strict=True), style, color=line.colour, alpha=0.85, gid=f"trial-{line.number}")


def _points(history: Sequence[Mapping[str, Any]], name: str, x: str = "step") -> list[tuple[int, float]]:
    return [(row[x], row[name]) for row in history if math.isfinite(row.get(name, math.nan))]


def _smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average with the bias of its start corrected, as Adam does."""
    smoothed, average, weight = [], 0.0, 0.0
    for value in values:
        average, weight = 0.8 * average + 0.2 * value, 0.8 * weight + 0.2
        smoothed.append(average / weight)
    return smoothed


def _scaled(column: Sequence[float] | Sequence[str], logarithmic: bool) -> tuple[list[float], list[tuple[float, str]]]:
    """The height of each value, 0 to 1, and (height, label) of the ticks, none within 5 % of another."""
    if any(isinstance(value, str) for value in column):
        names = sorted(map(str, set(column)))
        height = {name: (i + 0.5) / len(names) for i, name in enumerate(names)}
        return [height[str(value)] for value in column], [(y, name) for name, y in height.items()]
    numbers = [float(value) for value in column]
    low, high = min(numbers), max(numbers)
    norm = LogNorm(low, high) if logarithmic else Normalize(low, high)
    ticks = sorted(set(numbers))
    if len(ticks) > 6:
        locator = LogLocator(subs=(1, 2, 5)) if logarithmic else MaxNLocator(5)
        ticks = list(locator.tick_values(low, high))
    ticks = [low, high, *(tick for tick in ticks if low < tick < high)]  # the ends are always labelled
    kept: list[tuple[float, str]] = []
    for tick in ticks:
        y, label = float(norm(tick)), f"{tick:.3g}".replace("e-0", "e-")
        if all(abs(y - other) >= 0.05 and label != name for other, name in kept):
            kept.append((y, label))
    return [float(norm(value)) for value in numbers], sorted(kept)
