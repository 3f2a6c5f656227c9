"""Charts of a sweep as SVG, drawn by hand so that a line knows which trial it belongs to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from instruct_lit.sweeps.importance import all_numbers, is_logarithmic, number
from instruct_lit.sweeps.trials import Trial

GOOD, MIDDLE, BAD = (0, 114, 178), (150, 140, 160), (213, 94, 0)  # told apart by colour-blind eyes
NONE = "#999"
Scale = Callable[[float], float]


def colours(trials: Sequence[Trial]) -> dict[int, str]:
    """A colour for each trial by its rank among those with a value, blue for the best."""
    ranked = [trial.number for trial in trials if trial.value is not None]
    found = {trial.number: NONE for trial in trials}
    for rank, trial_number in enumerate(ranked):
        found[trial_number] = _mix(rank / max(1, len(ranked) - 1))
    return found


def curves(trials: Sequence[Trial], width: int = 940, height: int = 340) -> str:
    """Validation loss over optimizer steps, all trials; empty when none has a curve."""
    shown = [trial for trial in trials if trial.curve]
    if not shown:
        return ""
    losses = [loss for trial in shown for _, loss in trial.curve]
    low, high = min(losses), max(losses)
    log = low > 0 and high / low > 4
    x = _scale(0, max(step for trial in shown for step, _ in trial.curve), 62, width - 20, False)
    y = _scale(low, high, height - 40, 14, log)
    parts = [
        f'<line class="grid" x1="62" x2="{width - 20}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text x="54" y="{y(t) + 4:.1f}" text-anchor="end">{_short(t)}</text>'
        for t in ticks(low, high, log)
    ]
    last = max(step for trial in shown for step, _ in trial.curve)
    parts += [
        f'<text x="{x(t):.1f}" y="{height - 20}" text-anchor="middle">{_short(t)}</text>' for t in ticks(0, last, False)
    ]
    parts.append(f'<text x="{width - 20}" y="{height - 4}" text-anchor="end">optimizer step</text>')
    colour = colours(trials)
    for trial in reversed(shown):  # the best on top
        points = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in trial.curve)
        dash = ' stroke-dasharray="5 4"' if trial.status == "pruned" else ""
        end_x, end_y = (f"{v:.1f}" for v in (x(trial.curve[-1][0]), y(trial.curve[-1][1])))
        parts.append(
            f'<g data-trial="{trial.number}"><title>{_title(trial)}</title>'
            f'<polyline points="{points}" stroke="{colour[trial.number]}"{dash}/>'
            f'<circle cx="{end_x}" cy="{end_y}" r="3" fill="{colour[trial.number]}"/></g>'
        )
    return _svg(width, height, parts, "validation loss of all trials")


def parallel_coordinates(trials: Sequence[Trial], metric: str, width: int = 940, height: int = 320) -> str:
    """An axis for each parameter and one for the metric, a line for each trial with a value."""
    done = [trial for trial in trials if trial.value is not None]
    if len(done) < 2:
        return ""
    names = [name for name in done[0].parameters if len({t.parameters[name] for t in done}) > 1]
    axes = [(name, [trial.parameters[name] for trial in done]) for name in names]
    axes.append((metric, [repr(trial.value) for trial in done]))
    if len(axes) < 2:
        return ""
    gap = (width - 180) / (len(axes) - 1)
    places: list[list[float]] = []
    parts = []
    for place, (name, column) in enumerate(axes):
        x = 80 + place * gap
        y, labels = _axis(column, height - 24, 44)
        places.append([y(text) for text in column])
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="44" y2="{height - 24}"/>')
        parts.append(f'<text class="name" x="{x:.1f}" y="20" text-anchor="middle">{escape(name)}</text>')
        parts += [f'<text x="{x + 6:.1f}" y="{at + 4:.1f}">{escape(text)}</text>' for at, text in labels]
    colour = colours(trials)
    for row, trial in reversed(list(enumerate(done))):
        points = " ".join(f"{80 + place * gap:.1f},{ys[row]:.1f}" for place, ys in enumerate(places))
        parts.append(
            f'<g data-trial="{trial.number}"><title>{_title(trial)}</title>'
            f'<polyline points="{points}" stroke="{colour[trial.number]}"/></g>'
        )
    return _svg(width, height, parts, "parallel coordinates of all trials")


def ticks(low: float, high: float, log: bool, n: int = 5) -> list[float]:
    """Round numbers between `low` and `high`: steps of 1, 2 or 5 times a power of ten, or 1, 2, 5, 10, … if `log`."""
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
        return found or [low, high]
    if high <= low:
        return [low]
    rough = (high - low) / n
    step = next(
        m * 10.0 ** math.floor(math.log10(rough))
        for m in (1, 2, 5, 10)
        if m * 10 ** math.floor(math.log10(rough)) >= rough
    )
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _axis(column: Sequence[str], bottom: float, top: float) -> tuple[Callable[[str], float], list[tuple[float, str]]]:
    if all_numbers(column):
        numbers = [number(text) for text in column]
        log = is_logarithmic(column)
        scale = _scale(min(numbers), max(numbers), bottom, top, log)
        marks = [min(numbers), *ticks(min(numbers), max(numbers), log)[1:-1], max(numbers)]
        if len(set(numbers)) <= 6:
            marks = sorted(set(numbers))
        return lambda text: scale(number(text)), _apart([(scale(m), _short(m)) for m in marks])
    names = sorted(set(column))
    place = {name: bottom + (top - bottom) * (i + 0.5) / len(names) for i, name in enumerate(names)}
    return place.__getitem__, [(at, name) for name, at in place.items()]


def _apart(labels: list[tuple[float, str]]) -> list[tuple[float, str]]:
    kept: list[tuple[float, str]] = []
    for at, text in labels:
        if all(abs(at - other) >= 14 for other, _ in kept):
            kept.append((at, text))
    return kept


def _scale(low: float, high: float, start: float, end: float, log: bool) -> Scale:
    if log:
        inner = _scale(math.log(low), math.log(high), start, end, False)
        return lambda value: inner(math.log(value))
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _mix(share: float) -> str:
    a, b, t = (GOOD, MIDDLE, share * 2) if share <= 0.5 else (MIDDLE, BAD, share * 2 - 1)
    return "#" + "".join(f"{round(p + (q - p) * t):02x}" for p, q in zip(a, b, strict=True))


def _short(value: float) -> str:
    return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")


def _title(trial: Trial) -> str:
    result = _short(trial.value) if trial.value is not None else trial.status
    return escape(f"trial {trial.number}: {result}  " + " ".join(f"{k}={v}" for k, v in trial.parameters.items()))


def _svg(width: int, height: int, parts: Sequence[str], label: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">' + "".join(parts) + "</svg>"
