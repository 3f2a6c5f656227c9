"""Fine-tuning: examples per second and memory of ours and of its peers, alternating in fresh processes.

    python -m benchmarks.training --rounds 3 --json benchmarks/results/training-cpu.json

All train the same records with the same model shape (random weights), batch size and optimizer. Peers that are not
installed are named as such; `--peer-python` is the Python that has TRL, if it is another one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.common import BATCH_SIZE, SHAPES

OURS = [
    "ours padded fp32",
    "ours packed+prefix fp32",
    "ours padded bf16",
    "ours packed bf16",
    "ours packed+prefix bf16",
]
TRL = ["trl fp32", "trl bf16", "trl bf16 packed"]
REFERENCE = "chapter 7"


def ours(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The LightningModule and the data module of `train`, under Lightning's Trainer."""
    import torch
    from lightning import Callback, Trainer
    from omegaconf import OmegaConf

    from instruct_lit.config import CONF
    from instruct_lit.data.datamodule import InstructionData
    from instruct_lit.data.sources import FileSource
    from instruct_lit.data.template import Template
    from instruct_lit.data.tokenizer import GPT2Tokenizer
    from instruct_lit.model.gpt import GPT, GPTConfig
    from instruct_lit.training.hardware import keep_freed_memory
    from instruct_lit.training.module import InstructionTuner
    from instruct_lit.training.optimizer import adamw, parameter_groups, schedule

    keep_freed_memory()
    _, layout, precision = name.split()
    n_layers, n_heads, d_model = SHAPES[args.model]
    model = GPT(GPTConfig(d_model=d_model, n_layers=n_layers, n_heads=n_heads))
    model.init_weights(0)
    template = Template("alpaca", OmegaConf.load(CONF / "template" / "alpaca.yaml").text)
    n_steps = args.warm_up + args.steps
    clock: dict[str, Any] = {"n_tokens": 0}

    class Clock(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            import time

            common.synchronize(args.device) if batch_idx + 1 in (args.warm_up, n_steps) else None
            if batch_idx + 1 == args.warm_up:
                clock["start"] = time.perf_counter()
            elif batch_idx + 1 > args.warm_up:
                clock["n_tokens"] += batch.n_tokens
                clock["end"] = time.perf_counter()

    with tempfile.TemporaryDirectory() as cache:
        data = InstructionData(
            FileSource(str(args.data)), template, GPT2Tokenizer(), Path(cache), max_length=1024, batch_size=args.batch_size,
            layout="packed" if "packed" in layout else "padded", shared_prefix="prefix" in layout,
        )  # fmt: skip
        data.prepare_data()
        data.setup()
        tuner = InstructionTuner(
            model,
            lambda m: adamw(parameter_groups(m.named_parameters(), 0.1), lr=5e-5),
            lambda optimizer, n: schedule(optimizer, n, 0, "constant"),
        )
        trainer = Trainer(
            accelerator="gpu" if args.device == "cuda" else "cpu", devices=1, max_steps=n_steps, limit_val_batches=0, logger=False,
            precision="bf16-mixed" if precision == "bf16" else "32-true", enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False, callbacks=[Clock()],
        )  # fmt: skip
        trainer.fit(tuner, data)
    seconds = clock["end"] - clock["start"]
    n_parameters = model.n_parameters - model.wpe.weight.numel()
    flops = 6 * n_parameters * clock["n_tokens"] / seconds
    return {
        "examples_per_s": args.steps * args.batch_size / seconds,
        "useful_tokens_per_s": clock["n_tokens"] / seconds,
        "model_flops_per_s": flops,
        "peak_bytes": common.peak_memory(args.device),
        "torch": torch.__version__,
    }


def chapter_7(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The plain loop of `benchmarks.reference`."""
    import torch

    from benchmarks import reference
    from instruct_lit.data.tokenizer import GPT2Tokenizer

    torch.manual_seed(123)
    tokenizer = GPT2Tokenizer()
    records = common.records_of(args.data)[:935]
    texts = tokenizer.encode_batch([common.alpaca_prompt(r) + r["output"] for r in records])
    loader = torch.utils.data.DataLoader(
        texts, args.batch_size, shuffle=True, drop_last=True, collate_fn=reference.collate
    )  # type: ignore[arg-type]
    model = reference.PlainGPT(*SHAPES[args.model]).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.1, fused=False, foreach=None)
    batches = common.cycle(list(loader))

    def step() -> None:
        inputs, targets = next(batches)
        reference.train_step(model, optimizer, inputs.to(args.device), targets.to(args.device))

    seconds = common.timed(step, args.warm_up, args.steps, args.device)
    return {"examples_per_s": args.steps * args.batch_size / seconds, "peak_bytes": common.peak_memory(args.device)}


def trl(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """TRL's SFTTrainer on a random GPT-2 of the same shape, the prompt masked where it can."""
    import time

    import datasets
    import transformers
    import trl as library

    n_layers, n_heads, d_model = SHAPES[args.model]
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=n_layers, n_head=n_heads, n_embd=d_model))
    tokenizer = _hf_tokenizer()
    records = common.records_of(args.data)[:935]
    rows = [{"prompt": common.alpaca_prompt(r), "completion": r["output"]} for r in records]
    packed = name.endswith("packed")
    clock: dict[str, float] = {}

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, arguments: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in (args.warm_up, args.warm_up + args.steps):
                common.synchronize(args.device)
                clock[str(state.global_step)] = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        config = library.SFTConfig(
            folder, per_device_train_batch_size=args.batch_size if not packed else 1, max_steps=args.warm_up + args.steps,
            max_length=1024 if not packed else args.batch_size * 64, packing=packed, bf16="bf16" in name, use_cpu=args.device == "cpu",
            learning_rate=5e-5, weight_decay=0.1, report_to=[], save_strategy="no", logging_steps=10**6,
            disable_tqdm=True, gradient_checkpointing=False, dataloader_pin_memory=args.device == "cuda",
        )  # fmt: skip
        trainer = library.SFTTrainer(
            model,
            args=config,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        n_rows = len(trainer.train_dataset)
        trainer.train()
    seconds = clock[str(args.warm_up + args.steps)] - clock[str(args.warm_up)]
    per_step = args.batch_size if not packed else len(records) / n_rows
    return {
        "examples_per_s": args.steps * per_step / seconds,
        "peak_bytes": common.peak_memory(args.device),
        "trl": library.__version__,
    }


def _hf_tokenizer() -> Any:
    import transformers

    from instruct_lit.data.tokenizer import GPT2Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        for name, content in GPT2Tokenizer().vocab_files().items():
            (Path(folder) / {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}[name]).write_bytes(content)
        tokenizer = transformers.GPT2TokenizerFast(f"{folder}/vocab.json", f"{folder}/merges.txt")
    tokenizer.pad_token = tokenizer.eos_token = "<|endoftext|>"
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/instructions/book-1100.json"))
    parser.add_argument("--model", choices=list(SHAPES), default="gpt2")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--systems", nargs="+", default=[REFERENCE, *TRL, *OURS])
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--system", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.system:
        run = chapter_7 if args.system == REFERENCE else trl if args.system.startswith("trl") else ours
        common.report(run(args.system, args))
        return
    passed = [
        f"--{k.replace('_', '-')}={getattr(args, k)}"
        for k in ("data", "model", "batch_size", "device", "steps", "warm_up")
    ]
    results = common.alternate(
        "benchmarks.training", args.systems, passed, args.rounds, dict.fromkeys(TRL, args.peer_python)
    )
    rate = common.rates(args.device)
    print({name: f"{value / 1e9:.0f} GFLOP/s" for name, value in rate.items()})
    summary = common.table("fine-tuning", results, "examples_per_s", {"chapter 7": [REFERENCE], "TRL's best": TRL})
    common.write_json(args.json, {"matrix_flops_per_s": rate, "summary": summary, "results": results})


if __name__ == "__main__":
    main()
