"""What the metrics mean, between which values they lie, and how they are written, from `metrics.json`."""

import json
import math
from pathlib import Path
from typing import Any

from instruct_lit.evaluation.statistics import MIN_N

_UNITS = {"_bytes": "B", "flops_per_s": "FLOP/s", "tokens_per_s": "", "seconds": "s", "_s": "s"}
_METRICS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def meaning(name: str) -> str:
    """What a metric measures, in a few words; empty for an unknown one. A split before the name may be left out."""
    return next((m["meaning"] for key in (name, name.rpartition("/")[2]) if (m := _METRICS.get(key))), "")


def bounds(name: str) -> tuple[float, float]:
    """The least and the greatest value that a metric can have."""
    low, high = _METRICS.get(name.rpartition("/")[2], {}).get("range", (None, None))
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)


def quantity(value: Any, name: str) -> str:
    """A metric as text, with the unit that its name ends with."""
    unit = next((unit for end, unit in _UNITS.items() if name.endswith(end)), "")
    if not unit or isinstance(value, bool) or not isinstance(value, int | float):
        return number(value)
    from matplotlib.ticker import EngFormatter

    return f"{value:,.1f} s" if unit == "s" else EngFormatter(unit, places=1)(value)


def number(value: Any) -> str:
    """A metric or a count as text; any other value is shown unchanged, None as an empty text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value and not 1e-3 <= abs(value) < 1e7:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.4f}"


def p_value(p: float) -> str:
    """A p-value to four digits, the smallest as a bound."""
    return f"{p:.4f}" if p >= 1e-4 else "<0.0001"


def interval(value: Any, form: str = "%.3f") -> str:
    """The bounds of an interval, `low to high`; of few or equal values (either, without `n`) there are none."""
    if value["low"] is None:
        n = value.get("n")
        return "few or equal" if n is None else "all equal" if n >= MIN_N else "too few to say"
    return f"{form % value['low']} to {form % value['high']}"
