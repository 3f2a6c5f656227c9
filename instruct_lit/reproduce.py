"""python -m instruct_lit.reproduce run=<run folder>: run a finished training again and compare its metrics."""

import subprocess
import sys
from pathlib import Path

from omegaconf import DictConfig

from instruct_lit.config.compose import output_dir, run_command
from instruct_lit.errors import ConfigError, quoted


def reproduce(config: DictConfig) -> float:
    """Train again with the run's own overrides, report the differences, and return the largest relative one."""
    from instruct_lit.config.provenance import differing, read_provenance
    from instruct_lit.reports.reproduction import compare_runs

    run, saved = check_reproduce(config)
    out_dir = output_dir()
    rerun = out_dir / "run"
    arguments = [*saved, *config.changes, "hydra.mode=RUN", f"hydra.run.dir={quoted(rerun)}"]
    arguments.sort(key=lambda argument: not argument.startswith("--"))  # options go before overrides
    status = subprocess.run([sys.executable, "-m", "instruct_lit.train", *arguments]).returncode
    if status:
        raise ConfigError(f"run={config.run}: the rerun exited with status {status}; see its message above")
    found = compare_runs(run, rerun, differing(read_provenance(run), read_provenance(rerun)))
    found.write(out_dir / "comparison.json")
    found.print(config.tolerance)
    if found.worst > config.tolerance:
        print(f"not reproduced: relative difference {found.worst:.2g}, tolerance {config.tolerance:g}", file=sys.stderr)
        sys.exit(1)
    return found.worst


def check_reproduce(config: DictConfig) -> tuple[Path, list[str]]:
    """The folder of the finished run, and its overrides. Raises ConfigError for a configuration that cannot be run."""
    from instruct_lit.config.provenance import read_provenance
    from instruct_lit.config.run_folder import OVERRIDES, check_saved_files, saved_overrides
    from instruct_lit.evaluation.answer_files import read_metrics

    run = Path(config.run).expanduser().resolve()
    read_provenance(run)
    for name in ("metrics.json", OVERRIDES):
        if not (run / name).is_file():
            raise ConfigError(f"run={config.run}: no {name}, the run has not finished; resume it, or give another run")
    if read_metrics(run).get("interrupted"):
        raise ConfigError(f"run={config.run}: was interrupted before its end; resume it, or give another run")
    check_saved_files(run, config.changes)
    return run, saved_overrides(run, config.changes)


if __name__ == "__main__":
    run_command("reproduce", reproduce)
