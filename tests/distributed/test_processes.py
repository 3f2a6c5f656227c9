"""Several processes of one run: errors of another one, and the output of the first one alone."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from instruct_lit.distributed.processes import explained_peers, first_rank_first, silence_other_ranks
from instruct_lit.errors import TrainingError


def job(world_size: int, rank: int = 0) -> Any:
    launcher = SimpleNamespace(procs=["child"])
    strategy = SimpleNamespace(launcher=launcher)
    return SimpleNamespace(world_size=world_size, is_global_zero=rank == 0, local_rank=rank, strategy=strategy)


def test_a_lost_connection_is_explained_by_the_other_process() -> None:
    closed = RuntimeError(
        "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711\nException raised"
    )
    message = r"another process of this job has ended .*pair\.cc:547.*ckpt_path=last"
    with pytest.raises(TrainingError, match=message), explained_peers(job(2)):
        raise closed
    for world_size, error in ((1, closed), (2, RuntimeError("shape mismatch"))):
        with pytest.raises(RuntimeError) as caught, explained_peers(job(world_size)):
            raise error
        assert caught.value is error


def test_weights_without_a_gradient_need_another_ddp() -> None:
    lightnings = (
        "It looks like your LightningModule has parameters that were not used in producing the loss returned by"
    )
    message = r"trainer.strategy: DDP waits for gradients .*; use trainer.strategy=ddp_find_unused_parameters_true"
    with pytest.raises(TrainingError, match=message), explained_peers(job(2)):
        raise RuntimeError(lightnings)


def test_after_a_signal_the_children_are_forgotten() -> None:
    trainer = job(2)
    with pytest.raises(SystemExit), explained_peers(trainer):
        raise SystemExit(1)
    assert trainer.strategy.launcher.procs == []


def test_only_the_first_rank_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.stdout
    silence_other_ranks(job(2))
    assert sys.stdout is before
    monkeypatch.setattr(sys, "stdout", before)
    silence_other_ranks(job(2, rank=1))
    sys.stdout.close()


def test_one_process_waits_for_nobody() -> None:
    with first_rank_first(job(1)):
        pass
