"""A finished run is started again from its folder; on one device the losses are bit-equal."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def comparison(command: Callable, small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    folder = tmp_path_factory.mktemp("again")
    done = command("reproduce", f"run={small_run}", "hydra.run.dir=out", cwd=folder)
    return json.loads((folder / "out" / "comparison.json").read_text()), done.stdout


@pytest.mark.slow
def test_the_losses_are_bit_equal(comparison: tuple[dict, str]) -> None:
    found, shown = comparison
    assert found["first_step_that_differs"] is None and found["differs"] == []
    assert found["metrics"]["test/loss"]["relative_difference"] == 0
    assert "seconds" not in found["metrics"] and "tokens_per_s" not in found["metrics"]
    assert "all losses of all steps are bit-equal" in shown


def test_the_run_has_its_provenance(small_run: Path) -> None:
    found = json.loads((small_run / "provenance.json").read_text())
    assert found["command"][:3] == ["python", "-m", "instruct_lit.train"]
    assert found["changed"]["trainer.max_epochs"] == {"default": 3, "value": 2}
    assert len(found["weights_sha256"]) == 64 and found["data"]["name"] == "demo"
    assert json.loads((small_run / "bundle" / "instruct_lit.json").read_text())["provenance"] == found


@pytest.mark.slow
def test_a_change_is_found_and_named(command: Callable, small_run: Path, tmp_path: Path) -> None:
    done = command("reproduce", f"run={small_run}", 'changes=["seed=5"]', "hydra.run.dir=out", cwd=tmp_path, status=1)
    assert "not reproduced: relative difference" in done.stderr and "tolerance 0.01" in done.stderr
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert {"what": "seeds.seed", "original": 123, "rerun": 5} in found["differs"]
    assert found["first_step_that_differs"] is not None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param("run=null", "run=…: give a folder", marks=pytest.mark.slow),
        pytest.param("run=nowhere", "run=nowhere: no such folder", marks=pytest.mark.slow),
        ("run=.", ": no provenance.json; give a run folder of python -m instruct_lit.train"),
    ],
)
def test_what_cannot_be_reproduced_is_refused(command: Callable, tmp_path: Path, override: str, message: str) -> None:
    done = command("reproduce", override, cwd=tmp_path, status=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
