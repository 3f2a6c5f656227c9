"""Acceleration registers its attention kernels with the core, once."""

import pytest
import torch

from instruct_lit import accel
from instruct_lit.accel.decode_loop import decode_loop
from instruct_lit.core.generation import engine
from instruct_lit.core.model import attention


def test_the_kernels_are_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(attention.KERNELS)
    assert [decode_loop] == engine.DECODE_LOOPS, "the tests run with the loop of a run"
    monkeypatch.setattr(attention, "KERNELS", [])
    torch.backends.cuda.enable_cudnn_sdp(True)
    accel.install()
    accel.install()
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    names = [kernel.__name__ for kernel in attention.KERNELS]  # type: ignore[attr-defined]
    assert names == ["attend_decode", "attend_rows", "attend_varlen", "attend_documents"]
    assert before == attention.KERNELS, "the tests run with the kernels of a run"
