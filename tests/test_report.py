"""What Hydra's callback of a sweep prints when the sweep ends, or does not."""

import atexit
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from instruct_lit.report import SweepReport, how_to_resume


def test_an_interrupted_sweep_says_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[Any] = []
    monkeypatch.setattr(atexit, "register", lambda *given: called.append(given))
    monkeypatch.setattr(atexit, "unregister", lambda function: called.append(function))
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    SweepReport().on_multirun_start(config)
    SweepReport().on_multirun_end(config)
    assert called == [(how_to_resume, tmp_path), how_to_resume], "not after its end"
    how_to_resume(tmp_path)
    assert capsys.readouterr().err == "", "a sweep without a trial was refused"
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "trial.json").touch()
    how_to_resume(tmp_path)
    message = f"interrupted; to resume, add hydra.sweep.dir={tmp_path} to the same command\n"
    assert capsys.readouterr().err == message
