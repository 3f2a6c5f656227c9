"""What a run measures of its device."""

from types import SimpleNamespace

import pytest
import torch

from instruct_lit.accel import hardware
from instruct_lit.config.run_hooks import Utilisation


@pytest.mark.parametrize("has_room", [False, True])
def test_the_peak_of_memory_is_that_of_the_run_and_a_full_gpu_does_not_end_it(
    has_room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def matrix_rate(*_: object) -> float:
        events.append("products")
        if not has_room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 8.0

    def read() -> int:
        events.append("peak")
        return 123

    monkeypatch.setattr(hardware, "matrix_rate", matrix_rate)
    monkeypatch.setattr(hardware, "needed_flops", lambda *_: 4)
    hook = object.__new__(Utilisation)
    hook.memory = SimpleNamespace(read=read)  # type: ignore[assignment]
    hook.throughput = SimpleNamespace(n_tokens=1, n_supervised=1, training_s=2.0, figures=lambda: {"training_s": 2.0})
    trainer = SimpleNamespace(world_size=1, strategy=SimpleNamespace(root_device=None), precision="bf16-mixed")
    run = SimpleNamespace(trainer=trainer, settings=SimpleNamespace(fit=True), model=None, metrics={})
    hook.on_tested(run)  # type: ignore[arg-type]
    assert events == ["peak", "products"]
    measured = {"flop_utilisation": 0.25, "matrix_flops_per_s": 8.0} if has_room else {}
    assert run.metrics == {"training_s": 2.0, **measured, "peak_memory_bytes": 123}
