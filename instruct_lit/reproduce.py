"""python -m instruct_lit.reproduce run=<run folder>: start a finished run again and compare its numbers."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_lit.config.compose import run_command
from instruct_lit.config.schema import ReproduceConfig, check_values
from instruct_lit.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Overrides that lead to code: a run folder may be a stranger's, so they count only where they are given again.
CODE = re.compile(r"_target_|trust_remote_code=(?!false)|data\.filters.*function")
# Metrics that end like this are decided by the machine, not by the training.
MEASURED = ("seconds", "_s", "_bytes", "flop_utilisation")


@dataclass(frozen=True)
class Compared:
    """One number of both runs; `apart` is the relative difference, infinite where only one of them is a number."""

    name: str
    there: float
    here: float

    @property
    def apart(self) -> float:
        if self.there == self.here or (math.isnan(self.there) and math.isnan(self.here)):
            return 0.0
        if not (math.isfinite(self.there) and math.isfinite(self.here)):
            return math.inf
        return abs(self.here - self.there) / max(abs(self.there), abs(self.here))


def check_reproduce(config: Any) -> Path:
    """The finished run that is meant. Raises one ConfigError that says what is wrong with the configuration."""
    from instruct_lit.config.provenance import read_provenance

    if config.run is None:
        raise ConfigError("run=…: name the folder of a finished run")
    if problems := check_values(config):
        raise ConfigError("\n  ".join(problems))
    run = Path(config.run).expanduser().resolve()
    if not run.is_dir():
        raise ConfigError(f"run={config.run}: no such folder")
    read_provenance(run)
    for name in ("metrics.json", ".hydra/overrides.yaml"):
        if not (run / name).is_file():
            raise ConfigError(f"run={config.run}: no {name} there, the run has not finished")
    for override in saved_overrides(run):
        if CODE.search(override) and override not in config.changes:
            raise ConfigError(
                f"run={config.run}: it was started with {override}, and code that a run folder names is not run; if "
                f"you trust it, add 'changes=[\"{override}\"]'"
            )
    return run


def saved_overrides(run: Path) -> list[str]:
    """The overrides that a run was started with; Hydra's own are kept in another file."""
    from omegaconf import OmegaConf

    saved = OmegaConf.to_container(OmegaConf.load(run / ".hydra/overrides.yaml"))
    assert isinstance(saved, list), "Hydra writes a list"
    return [str(override) for override in saved]


def reproduce(config: DictConfig) -> float:
    """Train again with the run's own overrides, print what differs, and return the largest relative difference."""
    from hydra.core.hydra_config import HydraConfig

    from instruct_lit.config.provenance import differing, read_provenance

    run = check_reproduce(config)
    out_dir = Path(HydraConfig.get().runtime.output_dir)
    again = out_dir / "run"
    command = [
        sys.executable,
        "-m",
        "instruct_lit.train",
        *saved_overrides(run),
        *config.changes,
        f"hydra.run.dir={again}",
    ]
    status = subprocess.run(command).returncode
    if status:
        raise ConfigError(f"the run ended with status {status}; its own message stands above")

    facts = differing(read_provenance(run), read_provenance(again))
    numbers = compared(run, again)
    first = first_difference(run, again)
    write_comparison(out_dir, facts, numbers, first)
    print_comparison(facts, numbers, first, config.tolerance)
    worst = max((number.apart for number in numbers), default=0.0)
    if worst > config.tolerance:
        print(f"not reproduced: a difference of {worst:.2g}, allowed is {config.tolerance:g}", file=sys.stderr)
        sys.exit(1)
    return worst


def compared(run: Path, again: Path) -> list[Compared]:
    """The metrics that both runs have and that training decides."""
    there, here = (json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in (run, again))
    return [
        Compared(name, float(there[name]), float(here[name]))
        for name in there
        if name in here and isinstance(there[name], int | float) and not name.endswith(MEASURED)
    ]


def first_difference(run: Path, again: Path) -> int | None:
    """The first step whose logged losses are not bit-equal, or that only one of the runs logged; None when all are."""
    histories = []
    for folder in (run, again):
        rows = [json.loads(line) for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()]
        histories.append([(row["step"], row.get("train/loss"), row.get("val/loss")) for row in rows])
    for both in zip_longest(*histories):
        if both[0] != both[1]:
            return min(row[0] for row in both if row is not None)
    return None


def write_comparison(
    folder: Path, facts: list[tuple[str, Any, Any]], numbers: list[Compared], first: int | None
) -> None:
    """Keep what was found as `comparison.json`."""
    found = {
        "differs": [{"what": what, "there": there, "here": here} for what, there, here in facts],
        "metrics": {n.name: {"there": n.there, "here": n.here, "relative_difference": n.apart} for n in numbers},
        "first_step_that_differs": first,
    }
    (folder / "comparison.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def print_comparison(
    facts: list[tuple[str, Any, Any]], numbers: list[Compared], first: int | None, tolerance: float
) -> None:
    """Two tables: what was not the same to begin with, and the metrics side by side."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if facts:
        table = Table(title="not the same to begin with", title_justify="left")
        for head in ("what", "there", "here"):
            table.add_column(head, overflow="fold")
        for row in facts:
            table.add_row(*map(str, row))
        console.print(table)
    table = Table(title="metrics", title_justify="left")
    table.add_column("metric")
    for head in ("there", "here", "apart"):
        table.add_column(head, justify="right")
    for number in numbers:
        style = "red" if number.apart > tolerance else ""
        apart = f"{number.apart:.1e}" if number.apart else "equal"
        table.add_row(number.name, f"{number.there:.6g}", f"{number.here:.6g}", apart, style=style)
    console.print(table)
    console.print(
        "all losses of all steps are bit-equal" if first is None else f"the losses differ from step {first} on"
    )


def main() -> None:
    """Entry point of the command."""
    run_command("reproduce", ReproduceConfig, reproduce)


if __name__ == "__main__":
    main()
