"""The end of a run: limits of no batch, and failures after the training is paid for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instruct_lit.core.training import run
from instruct_lit.core.training.run import Run, RunHook
from tests.core.training.test_run import Parts, parts, settings  # noqa: F401

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*Checkpoint directory .* exists.*", "ignore:.*does not have many workers.*"
)
Make = Callable[..., Parts]


def small(folder: Path, **values: Any) -> Any:
    return settings(folder, **{"evaluate_base": False, "n_test_responses": 2, **values})


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_limit_of_no_batch_leaves_that_split_out(split: str, parts: Make, tmp_path: Path) -> None:
    Run(parts(max_steps=2, **{f"limit_{split}_batches": 0}), small(tmp_path))()
    metrics = metrics_of(tmp_path)
    assert {f"{name}/loss" for name in ("val", "test") if f"{name}/loss" in metrics} == {"val/loss", "test/loss"} - {
        f"{split}/loss"
    }
    assert metrics["n_steps"] == 2 and (tmp_path / "bundle" / "model.safetensors").is_file()


def test_what_fails_at_the_end_leaves_the_rest_and_names_it(
    parts: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Page(RunHook):
        ended = False

        def on_tested(self, run: Run) -> None:
            raise RuntimeError("the first failure")

        def on_end(self, run: Run) -> None:
            self.ended = True

    own, page = parts(max_steps=2), Page()

    def no_bundle(run: Run) -> None:
        raise OSError(28, "No space left on device")

    own.save_bundle = no_bundle  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the first failure"):
        Run(own, small(tmp_path), [page])()
    assert page.ended and metrics_of(tmp_path)["test/loss"] > 0
    best = tmp_path / "checkpoints" / "best.ckpt"
    kept = f"kept: {tmp_path / 'metrics.json'}, {tmp_path / 'responses.jsonl'}, {best}; to test the weights, add "
    assert kept + f"fit=false ckpt_path={best}" in capsys.readouterr().err


def test_answers_that_fail_leave_metrics_and_weights(
    parts: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*arguments: Any) -> None:
        raise ValueError("no answer")

    monkeypatch.setattr(run, "answer_split", refuse)
    with pytest.raises(ValueError, match="no answer"):
        Run(parts(max_steps=2), small(tmp_path))()
    assert metrics_of(tmp_path)["n_steps"] == 2 and metrics_of(tmp_path)["val/loss"] > 0
    assert "best.ckpt; to test the weights, add fit=false ckpt_path=" in capsys.readouterr().err
