"""What the headers of `conf/experiment` say comes out, comes out."""

import json
import re
from pathlib import Path

import pytest

from instruct_lit.config.compose import CONF
from tests.commands import Command

EXPECTED = re.compile(r"([\w/]+) (\d+\.?\d*) ± (\d+\.?\d*)")


def expected(path: Path) -> dict[str, tuple[float, float]]:
    """Metric → value and tolerance, from the header's line that begins with Expected; empty where there is none."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# Expected: ")]
    return {name: (float(value), float(by)) for line in lines for name, value, by in EXPECTED.findall(line)}


STATED = [path for path in sorted((CONF / "experiment").glob("*.yaml")) if expected(path)]


def test_what_runs_offline_in_a_minute_says_what_to_expect() -> None:
    assert "overfit_demo" in [path.stem for path in STATED]


@pytest.mark.slow
@pytest.mark.parametrize("path", STATED, ids=lambda path: path.stem)
def test_what_is_expected_comes_out(path: Path, command: Command, tmp_path: Path) -> None:
    command("train", f"experiment={path.stem}", "hydra.run.dir=run", cwd=tmp_path)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for name, (value, by) in expected(path).items():
        assert metrics[name] == pytest.approx(value, abs=by), name
