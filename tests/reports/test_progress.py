"""The progress bar reads the loss of a GPU rarely."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from instruct_lit.reports import progress


@pytest.mark.parametrize(("device", "readings"), [("cpu", ["0.100", "0.200"]), ("cuda", ["0.100", "0.100"])])
def test_the_loss_of_a_gpu_is_read_at_most_twice_a_second(
    device: str, readings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bar, module, found = progress.Progress(lambda: 7.0), SimpleNamespace(device=torch.device(device)), []
    monkeypatch.setattr(progress.time, "perf_counter", lambda: 100 + 0.2 * len(found))
    for loss in (0.1, 0.2, 0.3, 0.4):
        trainer: Any = SimpleNamespace(callback_metrics={"train/loss": torch.tensor(loss)})
        found.append(bar.get_metrics(trainer, module)["loss"])  # type: ignore[arg-type]
    assert found[:2] == readings and found[3] == "0.400"
