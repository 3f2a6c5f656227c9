"""How time and memory grow: with sequence length, batch size, records and parameters.

    python -m benchmarks.growth --json benchmarks/results/growth-cpu.json

Every row is a process of its own. Training rows are seconds per optimizer step of `packed` batches with a shared prefix,
every document of the stated length; the encoding rows are seconds and peak memory of encoding so many records, and
of opening them again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import common

SHAPES = {"10m": (6, 6, 192), "30m": (6, 6, 384), "124m": (12, 12, 768), "355m": (24, 16, 1024)}
ROWS = {
    "length": [f"train 124m {n} 4" for n in (128, 256, 512, 1024)],
    "batch": [f"train 124m 64 {n}" for n in (1, 4, 16, 64)],
    "parameters": [f"train {shape} 64 8" for shape in SHAPES],
    "records": [f"encode {n}" for n in (1_000, 10_000, 100_000, 1_000_000)],
}
RECORD = "Write a short story about number {n} and what happened to it on the way to the market in the town."


def train(shape: str, length: int, batch_size: int, device: str) -> dict[str, Any]:
    """Seconds per step with documents of one length, a third of it shared and half of it learnt."""
    import numpy as np
    import torch

    from instruct_lit import accel
    from instruct_lit.accel.adamw import adamw
    from instruct_lit.accel.cross_entropy import summed_cross_entropy
    from instruct_lit.accel.hardware import default_precision, keep_freed_memory
    from instruct_lit.accel.weight_copies import LowPrecisionWeights
    from instruct_lit.core.data.batching import Collator
    from instruct_lit.core.data.encode import EncodedExample
    from instruct_lit.core.model.gpt import GPT, GPTConfig
    from instruct_lit.core.training.loss import layout_of
    from instruct_lit.core.training.optimizer import parameter_groups

    accel.install()
    keep_freed_memory()
    n_layers, n_heads, d_model = SHAPES[shape]
    model = GPT(GPTConfig(d_model=d_model, n_layers=n_layers, n_heads=n_heads))
    model.init_weights(0)
    model.to(device).train()
    optimizer = adamw(parameter_groups(model.named_parameters(), 0.1), lr=1e-4)
    random = np.random.default_rng(0)
    ids = random.integers(0, 50256, (batch_size, length + 1))
    ids[:, : length // 3] = ids[0, : length // 3]
    documents = [EncodedExample(i, row, np.arange(length + 1) > length // 2) for i, row in enumerate(ids)]
    collator = Collator(50256, np.ones(50257, dtype=np.int64), "packed", shared_prefix=True, pad_to_multiple_of=32)
    batch = collator(documents).to(device)
    half = default_precision(device) == "bf16-mixed"
    weight_copy = None
    if device == "cpu":  # as AcceleratedStep does it
        dtype = torch.bfloat16 if half else torch.float32
        optimizer.copies = LowPrecisionWeights(model, model.head_weight, dtype, dtype).attach()
        weight_copy = optimizer.copies.of[id(model.head_weight)]

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            states = model.hidden_states(batch.input_ids, batch.position_ids, layout_of(batch), batch.loss_index)
            loss = summed_cross_entropy(
                states, model.head_weight, batch.targets, batch.loss_weights / batch.n_supervised, weight_copy
            )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = common.timed(step, 3, 4, device) / 4
    return {"seconds": seconds, "per_s": batch.n_tokens / seconds, "peak_bytes": common.peak_memory(device)}


def encode(n_records: int) -> dict[str, Any]:
    """Seconds to encode and to open again; the records are read from a file as a user's are."""
    from omegaconf import OmegaConf

    from instruct_lit.config.compose import CONF
    from instruct_lit.core.data.datamodule import InstructionData
    from instruct_lit.core.data.records import FileSource
    from instruct_lit.core.data.settings import Lengths
    from instruct_lit.core.data.template import Template
    from instruct_lit.core.data.tokenizer import GPT2Tokenizer

    template = Template("alpaca", OmegaConf.load(CONF / "template" / "alpaca.yaml").text)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        with path.open("w") as file:
            for n in range(n_records):
                file.write(json.dumps({"instruction": RECORD.format(n=n), "output": RECORD.format(n=n + 1)}) + "\n")
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            data = InstructionData(FileSource(str(path)), template, GPT2Tokenizer(), Path(folder), Lengths(1024))
            data.prepare_data()
            data.setup()
            seconds.append(time.perf_counter() - start)
        assert len(data.stores["main"]) == n_records
    peak = common.peak_memory("cpu")
    return {"seconds": seconds[0], "again_s": seconds[1], "per_s": n_records / seconds[0], "peak_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--tables", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--system", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.system:
        what, *values = args.system.split()
        found = (
            encode(int(values[0]))
            if what == "encode"
            else train(values[0], int(values[1]), int(values[2]), args.device)
        )
        common.report(found)
        return
    summary = {}
    for name in args.tables:
        results = common.alternate("benchmarks.growth", ROWS[name], [f"--device={args.device}"], 1, {})
        summary[name] = {row: found[-1] for row, found in results.items()}
        common.table(f"growth with {name} (tokens or records per second)", results, "per_s", {})
    common.write_json(args.json, {"tables": summary})


if __name__ == "__main__":
    main()
