"""The throughput of a training: what is counted, and that a resumed run counts on."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from instruct_lit.accel.throughput import Throughput
from instruct_lit.core.training.history import History
from instruct_lit.resume.last_checkpoint import LastCheckpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists.*")


def test_tokens_positions_and_seconds(make_data: Callable, make_tuner: Callable, fit: Callable, tmp_path: Path) -> None:
    measured, history = Throughput(), History(tmp_path / "history.jsonl")
    assert math.isnan(measured.tokens_per_s())
    tuner, data = make_tuner(), make_data()
    fit(tuner, data, measured, history, max_epochs=2)
    store, indices = data.examples_of("train")
    assert measured.n_tokens == 2 * int((store.lengths[indices] - 1).sum())
    assert measured.n_positions >= measured.n_tokens and measured.tokens_per_s() > 0
    assert measured.n_supervised == tuner.tokens_seen
    figures = measured.figures()
    assert figures["positions_per_token"] == measured.n_positions / measured.n_tokens
    assert figures["training_s"] > 0 and figures["waiting_s"] > 0
    rows = [json.loads(line) for line in history.path.read_text().splitlines()]
    assert all(row["tokens_per_s"] > 0 for row in rows)


def test_a_resumed_run_counts_on(make_data: Callable, make_tuner: Callable, fit: Callable, tmp_path: Path) -> None:
    counts = []
    for n, start in ((2, None), (3, tmp_path / "last.ckpt")):
        measured, save = Throughput(), LastCheckpoint(str(tmp_path), every_n_steps=1)
        fit(make_tuner(), make_data(), measured, save, max_steps=n, ckpt_path=start, enable_checkpointing=True)
        counts.append((measured.n_tokens, measured.n_supervised, measured.training_s))
    whole = Throughput()
    fit(make_tuner(), make_data(), whole, max_steps=3)
    assert counts[1][:2] == (whole.n_tokens, whole.n_supervised) and counts[1][2] > counts[0][2]


def test_figures_in_the_history_of_older_checkpoints_are_read() -> None:
    old = {"n_tokens": 7, "n_supervised": 3, "n_positions": 9, "training_s": 2.0, "waiting_s": 0.5, "n_rows": 1}
    checkpoint, measured = {"callbacks": {"History": old}}, Throughput()
    measured.on_load_checkpoint(None, None, checkpoint)  # type: ignore[arg-type]
    measured.load_state_dict(checkpoint["callbacks"][measured.state_key])
    assert (measured.n_tokens, measured.tokens_per_s()) == (7, 3.5)
