"""python -m instruct_lit.reproduce run=<run folder>: run a finished training again and compare its metrics."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from instruct_lit.config.compose import run_command
from instruct_lit.config.schema import check_values
from instruct_lit.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Overrides that lead to code: a run folder may come from a stranger, so they are used only where they are repeated.
CODE = re.compile(r"_target_|trust_remote_code=(?!false)|data\.filters.*function")


def reproduce(config: DictConfig) -> float:
    """Train again with the run's own overrides, report the differences, and return the largest relative one."""
    from hydra.core.hydra_config import HydraConfig

    from instruct_lit.config.provenance import differing, read_provenance
    from instruct_lit.reports.reproduction import compare_runs

    run = check_reproduce(config)
    out_dir = Path(HydraConfig.get().runtime.output_dir)
    rerun = out_dir / "run"
    overrides = [*saved_overrides(run), *config.changes, f"hydra.run.dir={rerun}"]
    status = subprocess.run([sys.executable, "-m", "instruct_lit.train", *overrides]).returncode
    if status:
        raise ConfigError(f"run={config.run}: the rerun exited with status {status}; see its message above")
    found = compare_runs(run, rerun, differing(read_provenance(run), read_provenance(rerun)))
    found.write(out_dir / "comparison.json")
    found.print(config.tolerance)
    if found.worst > config.tolerance:
        print(f"not reproduced: relative difference {found.worst:.2g}, tolerance {config.tolerance:g}", file=sys.stderr)
        sys.exit(1)
    return found.worst


def check_reproduce(config: DictConfig) -> Path:
    """The folder of the finished run. Raises ConfigError for a configuration that cannot be run."""
    from instruct_lit.config.provenance import read_provenance

    if config.run is None:
        raise ConfigError("run: not given; run=<folder of a finished run>")
    if problems := check_values(config):
        raise ConfigError("\n  ".join(problems))
    run = Path(config.run).expanduser().resolve()
    if not run.is_dir():
        raise ConfigError(f"run={config.run}: no such folder")
    read_provenance(run)
    for name in ("metrics.json", ".hydra/overrides.yaml"):
        if not (run / name).is_file():
            raise ConfigError(f"run={config.run}: no {name}, the run has not finished; resume it, or give another run")
    for override in saved_overrides(run):
        if CODE.search(override) and override not in config.changes:
            raise ConfigError(
                f"run={config.run}: was started with {override}, and code named by a run folder is not executed; if "
                f"you trust it, add 'changes=[\"{override}\"]'"
            )
    return run


def saved_overrides(run: Path) -> list[str]:
    """The overrides that a run was started with, without Hydra's own."""
    from omegaconf import OmegaConf

    saved = OmegaConf.to_container(OmegaConf.load(run / ".hydra/overrides.yaml"))
    assert isinstance(saved, list), "Hydra writes a list"
    return [str(override) for override in saved]


def main() -> None:
    """Entry point of the command."""
    run_command("reproduce", reproduce)


if __name__ == "__main__":
    main()
