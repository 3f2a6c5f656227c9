"""What two runs are compared by, and which run is not started again."""

import json
import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from instruct_lit.errors import ConfigError
from instruct_lit.reproduce import Compared, check_reproduce, first_difference


@pytest.mark.parametrize(
    ("there", "here", "apart"),
    [(2.0, 1.0, 0.5), (0.0, 0.0, 0.0), (math.nan, math.nan, 0.0), (0.5, math.nan, math.inf), (math.inf, 1.0, math.inf)],
)
def test_a_number_that_is_lost_is_a_difference(there: float, here: float, apart: float) -> None:
    assert Compared("val/loss", there, here).apart == apart


@pytest.mark.parametrize(
    ("here", "first"),
    [([(5, 1.0), (10, 0.5)], None), ([(5, 1.0), (10, 0.6)], 10), ([(5, 1.0)], 10), ([], 5)],
)
def test_the_first_step_that_differs(tmp_path: Path, here: list[tuple[int, float]], first: int | None) -> None:
    for name, rows in (("there", [(5, 1.0), (10, 0.5)]), ("here", here)):
        (tmp_path / name).mkdir()
        lines = [json.dumps({"step": step, "train/loss": loss}) + "\n" for step, loss in rows]
        (tmp_path / name / "history.jsonl").write_text("".join(lines))
    assert first_difference(tmp_path / "there", tmp_path / "here") == first


@pytest.mark.parametrize(
    "override",
    [
        "model.trust_remote_code=true",
        "optimizer._target_=instruct_lit.suites.execution.passes",
        "data.filters={function: {path: evil.py}}",
        "+data.filters.function.path=evil.py",
    ],
)
def test_code_that_a_run_folder_names_is_not_run(tmp_path: Path, override: str) -> None:
    (tmp_path / ".hydra").mkdir()
    for name in ("provenance.json", "metrics.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / ".hydra" / "overrides.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(["seed=1", override])))
    config = {"run": str(tmp_path), "tolerance": 0.1, "changes": []}
    with pytest.raises(ConfigError, match="code that a run folder names is not run; if you trust it, add 'changes="):
        check_reproduce(OmegaConf.create(config))
    assert check_reproduce(OmegaConf.create({**config, "changes": [override]})) == tmp_path.resolve()
