"""The memory of a training step on a CPU: measured, and as `peek` counts it.

    python -m benchmarks.step_memory --model hf:<folder with config.json and tokenizer> --answers <answers of GPT-4>

Each row is a process of its own. Measured is the highest resident memory of four optimizer steps, two of ordinary batches
and two of the largest, above that after the imports and the reading of the records. Weights are random; `gemma` is Gemma
3's shape with four layers and the folder's tokenizer. `--more 20` takes as many steps of all sizes before the last two,
as a longer run does. `--row "gpt2 book 4 packed bf16"` measures one row: model, records,
examples of a batch, layout, precision, and any of lora, frozen, accumulated, checkpointed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import random
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import common

ROWS = [
    "gpt2 book 4 packed fp32", "gpt2 book 4 packed bf16", "gpt2 book 16 padded fp32",
    "gpt2 answers 4 packed fp32", "gpt2 answers 4 packed bf16",
    "gpt2 answers 4 padded fp32", "gpt2 answers 4 padded bf16",
    "hf book 4 packed fp32", "hf book 4 packed bf16", "hf book 4 packed fp32 lora", "hf book 4 packed bf16 lora",
    "hf answers 4 packed fp32", "hf answers 4 packed bf16", "hf answers 4 packed bf16 lora",
    "hf answers 4 packed bf16 lora frozen", "hf answers 4 packed bf16 accumulated", "hf answers 4 bucketed bf16",
    "hf answers 4 packed bf16 checkpointed", "gpt2 answers 4 packed bf16 checkpointed",
    "gpt2 answers 1 packed bf16", "hf book 1 packed bf16",
    "gemma answers 4 packed bf16", "gemma answers 4 packed bf16 lora frozen",
    "nano book 16 packed fp32", "nano book 16 packed bf16",
]  # fmt: skip
OPTIONS = {
    "lora": "adapter=lora", "frozen": "model.dtype=bfloat16", "accumulated": "trainer.accumulate_grad_batches=2",
    "checkpointed": "model.activation_checkpointing=1",
}  # fmt: skip
GEMMA = {"hidden_size": 640, "intermediate_size": 2048, "num_attention_heads": 4, "num_key_value_heads": 1,
         "head_dim": 256, "vocab_size": 262144, "num_hidden_layers": 4}  # fmt: skip
MIB = 2**20


def measure(row: str, args: argparse.Namespace) -> dict[str, int]:
    """Measured and counted bytes of a row."""
    from instruct_lit.accel import estimate
    from instruct_lit.accel.adamw import adamw
    from instruct_lit.accel.hardware import keep_freed_memory
    from instruct_lit.accel.step import AcceleratedStep
    from instruct_lit.config import model_builders as build
    from instruct_lit.config.compose import composed
    from instruct_lit.config.counted_model import without_weights
    from instruct_lit.config.data_builders import data_of
    from instruct_lit.core.training.loss import FitFacts
    from instruct_lit.core.training.optimizer import parameter_groups
    from instruct_lit.datasets.profile import training_batches
    from instruct_lit.hf.files import import_transformers

    name, records, size, layout, precision, *options = row.split()
    keep_freed_memory()
    build.install_satellites()
    for automatic in ("AutoModelForCausalLM", "AutoTokenizer", "LlamaForCausalLM", "Gemma3ForCausalLM"):
        getattr(import_transformers(), automatic)
    if "lora" in options:
        import peft  # noqa: F401
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            *model_overrides(name, args.model, Path(folder)), *(OPTIONS[option] for option in options),
            "data=files", f"data.path={getattr(args, records)}", f"data.batch_size={size}", f"batching={layout}",
            f"paths.cache={folder}",
        ]  # fmt: skip
        config = composed("train", overrides)
        tokenizer, template = build.language_of(config)
        data = data_of(config, template, tokenizer, build.context_of(config))
        data.prepare_data()
        data.setup()
        batches = sorted(data.train_dataloader(), key=lambda batch: batch.input_ids.numel())
        n_micro, bf16 = config.trainer.accumulate_grad_batches, precision == "bf16"
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        memory = common.Memory("cpu")
        model = build.model_of(config)
        build.adapt(config, model)
        step = AcceleratedStep()
        step.attach(model.train())
        optimizer = adamw(parameter_groups(model.named_parameters(), weight_decay=0.1), lr=1e-5)
        step.start(optimizer, FitFacts("bf16-mixed" if bf16 else "32-true", n_micro, is_wrapped=False))
        ordinary = [batches[len(batches) // 2], batches[len(batches) // 4]]
        of_all_sizes = random.Random(0).sample(batches, min(args.more, len(batches)))
        for batch in (*ordinary, *of_all_sizes, batches[-1], batches[-1]):
            estimate.train_step(step, optimizer, batch, bf16, n_micro)
        measured = memory.figures()["peak_above_import_bytes"]
        as_in_peek = training_batches(data, {str(key): getattr(data.batching, str(key)) for key in config.batching})[1]
        largest = max(as_in_peek, key=lambda batch: batch.input_ids.numel())
        with estimate.counting(on_gpu=False):
            counted = estimate.memory_of(without_weights(config), largest, bf16, n_micro_batches=n_micro)
    return {"measured": measured, "counted": counted.peak, "n_positions": batches[-1].input_ids.numel()}


def model_overrides(name: str, model: str, folder: Path) -> list[str]:
    """The model of a row: of `conf/model`, that of the folder, or Gemma's shape, written into `folder`."""
    if name not in ("hf", "gemma"):
        return [f"model={name}", "model.path=null", "model.pretrained=false"]
    source = common.folder_of(model)
    assert source is not None, "a row of transformers needs --model hf:<folder>"
    if name == "gemma":
        import transformers

        transformers.Gemma3TextConfig(**GEMMA).save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
        source = str(folder)
    return ["model=hf", f"model.path={source}", "model.pretrained=false", "template=alpaca"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="hf:<folder>, the model of the rows that begin with hf")
    parser.add_argument("--book", type=Path, default=common.DATA, help="the 1,100 records of chapter 7")
    parser.add_argument("--answers", type=Path, required=True, help="records with long answers")
    parser.add_argument("--more", type=int, default=0, help="further steps of batches of all sizes")
    parser.add_argument("--row", action="append", dest="rows", default=None, help="this row only; repeatable")
    parser.add_argument("--system", default=None, help="measure this row here and now, without a table")
    parser.add_argument("--json", type=Path, default=None, help="where the figures are written")
    args = parser.parse_args()
    if args.system:
        common.report(measure(args.system, args))
        return
    passed = common.passed_on(args, "model", "book", "answers", "more")
    print("| row | positions | measured, MiB | counted | difference |\n|---|---|---|---|---|")
    results: dict[str, Any] = {}
    for row in args.rows or ROWS:
        results |= common.alternate("benchmarks.step_memory", [row], passed, 1, {})
        found = results[row][0]
        if "error" in found:
            print(f"| {row} | {found['error']} |")
            continue
        n_positions, measured, counted = found["n_positions"], found["measured"], found["counted"]
        figures = f"{measured / MIB:,.0f} | {counted / MIB:,.0f} | {counted / measured - 1:+.1%}"
        print(f"| {row} | {n_positions:,} | {figures} |", flush=True)
    common.write_json(args.json, {"results": results})


if __name__ == "__main__":
    main()
