"""Two ranks with batches of 4 are one with batches of 8: parameters after the steps, metrics, every example once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys, warnings
import torch
from lightning import Trainer
from instruct_lit.data.datamodule import InstructionData
from instruct_lit.data.demo import DemoSource
from instruct_lit.data.template import Template
from instruct_lit.data.tokenizer import GPT2Tokenizer
from instruct_lit.model.gpt import GPT, GPTConfig
from instruct_lit.training.module import InstructionTuner
from instruct_lit.training.optimizer import parameter_groups, schedule

warnings.simplefilter("ignore")
folder, n_ranks, layout = sys.argv[1], int(sys.argv[2]), sys.argv[3]

class Seen(InstructionTuner):
    ids = []
    def validation_step(self, batch, batch_idx):
        self.ids += batch.example_ids.tolist()
        super().validation_step(batch, batch_idx)

def main():
    torch.set_num_threads(1)
    model = GPT(GPTConfig(context_length=64, d_model=16, n_layers=1, n_heads=2))
    model.init_weights(0)
    data = InstructionData(DemoSource(30), Template("t", "{{ instruction }} {{ input }}: {{ response }}"), GPT2Tokenizer(),
        folder, max_length=64, split={"train": 19, "val": 7, "test": 4}, seed=1, batch_size=8 // n_ranks,
        eval_batch_size=2, layout=layout, shared_prefix=layout == "packed")
    tuner = Seen(model, lambda m: torch.optim.SGD(parameter_groups(m.named_parameters(), 0.0), lr=0.1),
        lambda o, n: schedule(o, n, 0, "constant"))
    trainer = Trainer(accelerator="cpu", devices=n_ranks, strategy="ddp_fork" if n_ranks > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False, max_epochs=2, check_val_every_n_epoch=2, log_every_n_steps=1,
        callbacks=[Report(folder, n_ranks, layout)])
    trainer.fit(tuner, data)

from lightning import Callback
class Report(Callback):
    def __init__(self, *where): self.where = where
    def on_fit_end(self, trainer, tuner):
        folder, n_ranks, layout = self.where
        norms = {n: [p.double().sum().item(), p.double().norm().item()] for n, p in tuner.model.named_parameters()}
        found = {"parameters": norms, "seen": tuner.ids, "tokens": tuner.tokens_seen, "steps": trainer.global_step,
                 "metrics": {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("val/") or k == "train/loss"}}
        with open(f"{folder}/{layout}-{n_ranks}-{trainer.global_rank}.json", "w") as file:
            json.dump(found, file)

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("layout", [pytest.param("padded", marks=pytest.mark.slow), "packed"])
def test_trap_7_and_14_two_ranks_are_one(tmp_path: Path, layout: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    for n_ranks in (1, 2):
        done = subprocess.run(
            [sys.executable, str(program), str(tmp_path), str(n_ranks), layout],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, first, second = (json.loads((tmp_path / f"{layout}-{n}.json").read_text()) for n in ("1-0", "2-0", "2-1"))
    assert sorted(first["seen"] + second["seen"]) == sorted(one["seen"]) and len(set(one["seen"])) == 7
    assert first["tokens"] == one["tokens"] and first["steps"] == one["steps"] == 6
    for name, (total, norm) in one["parameters"].items():
        assert first["parameters"][name] == pytest.approx([total, norm], rel=1e-5, abs=1e-5), name
        assert second["parameters"][name] == first["parameters"][name]
    assert first["metrics"] == pytest.approx(one["metrics"], rel=1e-5)
