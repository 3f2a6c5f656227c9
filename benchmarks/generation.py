"""Answering the test set greedily: tokens per second of ours and of its peers, alternating in fresh processes.

    python -m benchmarks.generation --rounds 3 --json benchmarks/results/generation-cpu.json

All answer the same test prompts with the same random GPT-2 shape; none ever emits end-of-text on purpose, so every
answer has `--new-tokens` tokens. Chapter 7's loop answers a sample of the prompts, since its time is the same for each.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.common import SHAPES

OURS = ["ours fp32", "ours bf16"]
HF = ["hf generate fp32 8", "hf generate fp32 32", "hf generate bf16 32"]
REFERENCE = "chapter 7"


def prompts_of(args: argparse.Namespace) -> list[list[int]]:
    """Prompt ids of the book's test split."""
    from instruct_lit.data.tokenizer import GPT2Tokenizer

    records = common.records_of(args.data)[935:1045]
    return GPT2Tokenizer().encode_batch([common.alpaca_prompt(record) for record in records])


def ours(name: str, args: argparse.Namespace) -> tuple[int, float]:
    """The engine."""
    import torch

    from instruct_lit.data.tokenizer import GPT2Tokenizer
    from instruct_lit.generation.engine import Engine
    from instruct_lit.generation.sampling import SamplingSettings
    from instruct_lit.model.gpt import GPT, GPTConfig
    from instruct_lit.training.hardware import keep_freed_memory

    keep_freed_memory()
    n_layers, n_heads, d_model = SHAPES[args.model]
    model = GPT(GPTConfig(d_model=d_model, n_layers=n_layers, n_heads=n_heads))
    model.init_weights(0)
    model = model.to(args.device, torch.bfloat16 if name.endswith("bf16") else torch.float32).eval()
    prompts = prompts_of(args)
    engine = Engine(model, GPT2Tokenizer(), max_rows=args.rows)
    settings = SamplingSettings(max_new_tokens=args.new_tokens)
    engine.generate(prompts[:4], SamplingSettings(max_new_tokens=2))
    start = time.perf_counter()
    requests = engine.generate(prompts, settings)
    common.synchronize(args.device)
    return sum(len(request.ids) for request in requests), time.perf_counter() - start


def hf(name: str, args: argparse.Namespace) -> tuple[int, float]:
    """Hugging Face's generate in batches, padded on the left, prompts sorted by length."""
    import torch
    import transformers

    *_, precision, rows = name.split()
    n_layers, n_heads, d_model = SHAPES[args.model]
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=n_layers, n_head=n_heads, n_embd=d_model)
    ).eval()
    model = model.to(args.device, torch.bfloat16 if precision == "bf16" else torch.float32)
    prompts = sorted(prompts_of(args), key=len)
    n_rows, n_tokens = int(rows), 0
    start = time.perf_counter()
    for place in range(0, len(prompts), n_rows):
        batch = prompts[place : place + n_rows]
        width = max(map(len, batch))
        ids = torch.tensor([[50256] * (width - len(p)) + p for p in batch], device=args.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch], device=args.device)
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=args.new_tokens,
            min_new_tokens=args.new_tokens,
            do_sample=False,
            pad_token_id=50256,
        )
        n_tokens += (out.shape[1] - width) * len(batch)
    common.synchronize(args.device)
    return n_tokens, time.perf_counter() - start


def chapter_7(name: str, args: argparse.Namespace) -> tuple[int, float]:
    """One prompt after the other, everything computed anew for every token."""
    import torch

    from benchmarks import reference

    torch.manual_seed(0)
    model = reference.PlainGPT(*SHAPES[args.model]).to(args.device).eval()
    prompts = prompts_of(args)[:: max(1, 110 // args.sample)][: args.sample]
    start = time.perf_counter()
    n_tokens = sum(len(reference.generate(model, prompt, args.new_tokens)) for prompt in prompts)
    common.synchronize(args.device)
    return n_tokens, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/instructions/book-1100.json"))
    parser.add_argument("--model", choices=list(SHAPES), default="gpt2")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--sample", type=int, default=3, help="prompts that chapter 7's loop answers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--systems", nargs="+", default=[REFERENCE, *HF, *OURS])
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--system", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.system:
        run: Any = chapter_7 if args.system == REFERENCE else hf if args.system.startswith("hf") else ours
        n_tokens, seconds = run(args.system, args)
        result = {
            "tokens_per_s": n_tokens / seconds,
            "n_tokens": n_tokens,
            "peak_bytes": common.peak_memory(args.device),
        }
        common.report(result)
        return
    names = ("data", "model", "device", "rows", "new_tokens", "sample")
    passed = [f"--{k.replace('_', '-')}={getattr(args, k)}" for k in names]
    results = common.alternate("benchmarks.generation", args.systems, passed, args.rounds, {})
    summary = common.table(
        "110 test answers, greedy", results, "tokens_per_s", {"chapter 7": [REFERENCE], "generate's best": HF}
    )
    common.write_json(args.json, {"summary": summary, "results": results})


if __name__ == "__main__":
    main()
