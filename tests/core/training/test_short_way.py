"""From a batch to the backward pass of its loss: few enough files and functions to be read."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from lightning import Callback

import instruct_lit
from instruct_lit.core.model import attention

PACKAGE = Path(instruct_lit.__file__).parent


class Profile(Callback):
    """Which of our functions a micro-batch calls, from the module's step to its backward pass."""

    def __init__(self) -> None:
        self.called: set[tuple[str, str]] = set()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        sys.setprofile(self._record)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        sys.setprofile(None)

    def _record(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(PACKAGE)) and not code.co_name.startswith("<"):
            self.called.add((str(Path(code.co_filename).relative_to(PACKAGE)), code.co_qualname))


def test_a_batch_reaches_its_backward_pass_in_few_files_and_functions(
    make_tuner: Callable, make_data: Callable, fit: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "KERNELS", [])  # those of satellites
    profile = Profile()
    layout = {"layout": "packed", "shared_prefix": True}
    fit(make_tuner(), make_data(**layout), profile, max_steps=1)
    training = {(file, name) for file, name in profile.called if file.startswith("core/training/")}
    assert {file for file, _ in training} == {"core/training/module.py", "core/training/loss.py"}
    assert len(training) <= 12, training
    assert len(profile.called) <= 28 and len({file for file, _ in profile.called}) <= 6, sorted(profile.called)
