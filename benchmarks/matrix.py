"""What matrix products alone would allow: the machine's rate, and the products that the records need.

    python -m benchmarks.matrix

The rate is that of GPT-2's own products (tokens of a batch times its weights), the best of several tries, so that it bounds
a training step from above.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import common

N_TOKENS = {"cpu": 512, "cuda": 16384}
SECONDS = 5.0  # after which no further try is made: a processor without bf16 takes that long for one


def rates(device: str, d_model: int = 768) -> dict[str, float]:
    """Measured FLOP/s by precision."""
    import torch

    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        pairs = [
            [torch.randn(shape, device=device, dtype=dtype) for shape in ((N_TOKENS[device], n), (n, m))]
            for n, m in ((d_model, 3 * d_model), (d_model, 4 * d_model), (4 * d_model, d_model))
        ]
        n_flops = sum(2 * a.shape[0] * b.numel() for a, b in pairs)
        best, end = math.inf, time.perf_counter() + SECONDS
        for n_tries in range(30):
            if n_tries and time.perf_counter() > end:
                break
            common.synchronize(device)
            start = time.perf_counter()
            for a, b in pairs:
                a @ b
            common.synchronize(device)
            best = min(best, time.perf_counter() - start)
        found[name] = n_flops / best
    return found


@dataclass(frozen=True)
class Need:
    """What an average training record needs.

    `flops` are those of forward and backward products with the weights: each input token once through the blocks, each
    response token once through the head. `flops_shared` leaves out what a prefix computed once per batch saves.
    """

    n_tokens: float
    n_prefix: int
    flops: float
    flops_shared: float


def need_of(data: Path, model: str, batch_size: int) -> Need:
    """What the book's training records need of a model whose weights are all trained."""
    records, encode = common.records_of(data), _encode_of(model)
    prompts, answers = encode([common.alpaca_prompt(r) for r in records]), encode([r["output"] for r in records])
    n_inputs = sum(len(p) + len(a) for p, a in zip(prompts, answers, strict=True)) / len(records)
    n_learnt = sum(len(a) + 1 for a in answers) / len(records)  # with end-of-text
    ends = zip(min(prompts), max(prompts), strict=False)  # what the extremes share, all share
    n_prefix = next(i for i, (a, b) in enumerate(ends) if a != b)
    block, head = _sizes_of(model)
    saved = n_prefix * (1 - 1 / batch_size)
    of_head = 6 * head * n_learnt
    return Need(n_inputs, n_prefix, 6 * block * n_inputs + of_head, 6 * block * (n_inputs - saved) + of_head)


def _encode_of(model: str) -> Callable[[list[str]], list[list[int]]]:
    """From texts to ids by the model's own tokenizer, without what it puts around a text."""
    if (folder := common.folder_of(model)) is None:
        from instruct_lit.core.data.tokenizer import GPT2Tokenizer

        return GPT2Tokenizer().encode_batch
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)  # nosec B615
    return lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"]


def _sizes_of(model: str) -> tuple[int, int]:
    """Numbers of weights in the matrices of the blocks, and in the head."""
    if (folder := common.folder_of(model)) is None:
        n_layers, _, d_model = common.shape_of(model)
        return 12 * n_layers * d_model**2, 50257 * d_model
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        hf: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))  # nosec B615
    head = hf.get_output_embeddings().weight.numel()
    tables = {id(e.weight) for e in (hf.get_input_embeddings(), hf.get_output_embeddings())}
    return sum(p.numel() for p in hf.parameters() if p.ndim == 2 and id(p) not in tables), head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=list(N_TOKENS), default="cpu")
    for name, rate in rates(parser.parse_args().device).items():
        print(f"{name}: {rate / 1e9:,.0f} GFLOP/s")


if __name__ == "__main__":
    main()
