"""The comparison of a run with its rerun: metrics, logged losses, and what differed in their provenance."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from instruct_lit.evaluation.answer_files import read_jsonl, read_metrics
from instruct_lit.reports.tables import show, show_table

# Endings of metrics that depend on the machine and not on the training.
MEASURED = ("seconds", "_s", "_bytes", "flop_utilisation")


def relative_difference(a: float, b: float) -> float:
    """Infinite where only one of the values is finite, 0 where both are NaN."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    return abs(b - a) / max(abs(a), abs(b)) if math.isfinite(a) and math.isfinite(b) else math.inf


@dataclass(frozen=True)
class Reproduction:
    """What two runs have in common and what not.

    `changes` are (key, original, rerun) of the provenance, `metrics` the values of both and their relative difference
    by name; `first_step` is the first step whose losses are not bit-equal, None when all are.
    """

    changes: Sequence[tuple[str, Any, Any]]
    metrics: Mapping[str, tuple[float, float, float]]
    first_step: int | None

    @property
    def worst(self) -> float:
        """The largest relative difference of a metric."""
        return max((difference for _, _, difference in self.metrics.values()), default=0.0)

    def write(self, path: Path) -> None:
        """Write the comparison as JSON."""
        content = {
            "differs": [{"what": key, "original": a, "rerun": b} for key, a, b in self.changes],
            "metrics": {
                name: {"original": a, "rerun": b, "relative_difference": apart}
                for name, (a, b, apart) in self.metrics.items()
            },
            "first_step_that_differs": self.first_step,
        }
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def print(self, tolerance: float) -> None:
        """Print the changes and the metrics as tables; differences above the tolerance are marked."""
        heads = ("changed before training", "original", "rerun")
        show_table(heads, self.changes, text=heads)
        rows = [
            (name, f"{a:.6g}", f"{b:.6g}", (f"{apart:.1e}" if apart else "equal") + " !" * (apart > tolerance))
            for name, (a, b, apart) in self.metrics.items()
        ]
        show_table(("metric", "original", "rerun", "relative difference"), rows)
        first = self.first_step
        show("all losses of all steps are bit-equal" if first is None else f"the losses differ from step {first} on")


def compare_runs(original: Path, rerun: Path, changes: Sequence[tuple[str, Any, Any]]) -> Reproduction:
    """Compare the metrics that training determines, and the logged losses, of two run folders."""
    a, b = read_metrics(original), read_metrics(rerun)
    names = [n for n in a if n in b and isinstance(a[n], int | float) and not n.endswith(MEASURED)]
    values = {name: (float(a[name]), float(b[name])) for name in names}
    metrics = {name: (*pair, relative_difference(*pair)) for name, pair in values.items()}
    return Reproduction(changes, metrics, first_difference(original, rerun))


def first_difference(original: Path, rerun: Path) -> int | None:
    """The first step whose logged losses are not bit-equal or that only one run logged; None when there is none."""
    histories = [
        [(row["step"], row.get("train/loss"), row.get("val/loss")) for row in read_jsonl(run / "history.jsonl")]
        for run in (original, rerun)
    ]
    for rows in zip_longest(*histories):
        if rows[0] != rows[1]:
            return min(row[0] for row in rows if row is not None)
    return None
