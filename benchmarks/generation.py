"""Answering the test set greedily: tokens per second of ours and of its peers, alternating in fresh processes.

    python -m benchmarks.generation --rounds 3 --json benchmarks/results/generation-cpu.json
    python -m benchmarks.generation --device cuda --rounds 1 --model hf:<folder> --rows 64 --n-prompts 64

All answer the same test prompts with the same shape and random weights, up to `--new-tokens` tokens each. Chapter 7's
loop answers a sample of them, evenly taken, since it writes one after the other. With `--ch07` the book's own code runs
too. On a GPU `generate` also runs with a static cache and compiled, ours also without CUDA graphs (`eager`), and vLLM
where it is installed; their graphs are recorded and compiled before the clock starts. Ids are those of GPT-2's
tokenizer for every model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import common

OURS = ["ours fp32", "ours bf16"]
OURS_GPU = ["ours bf16 eager"]
HF = [f"hf generate {precision} {n_rows}" for precision in ("fp32", "bf16") for n_rows in (8, 32, 110)]
HF_GPU = ["hf generate bf16 110 static", "hf generate bf16 110 compiled"]
VLLM = "vllm bf16"
REFERENCE, CHECKOUT = "chapter 7", "chapter 7 checkout"
Prompts = Sequence[list[int]]
Answer = Callable[[Prompts, int], int]  # prompts and tokens to write → tokens written


def ours(name: str, args: argparse.Namespace) -> Answer:
    """The engine."""
    import torch

    from instruct_lit.accel.bf16_weights import BF16Weights
    from instruct_lit.accel.hardware import keep_freed_memory
    from instruct_lit.config.model_builders import install_satellites
    from instruct_lit.core.data.tokenizer import GPT2Tokenizer
    from instruct_lit.core.generation.engine import DECODE_LOOPS, Engine
    from instruct_lit.core.generation.sampling import SamplingSettings

    keep_freed_memory()
    install_satellites()
    if (folder := common.folder_of(args.model)) is None:
        model: Any = common.random_gpt(args.model).to(args.device)
    else:
        from instruct_lit.hf.model import HFModel

        model = HFModel(_random_hf(folder, args.device, torch.float32))
    make_weights = BF16Weights if "bf16" in name.split() else None
    make_loops = () if name.endswith("eager") else DECODE_LOOPS
    engine = Engine(model, GPT2Tokenizer(), args.rows, make_weights, make_loops)

    def answer(prompts: Prompts, n_new: int) -> int:
        with torch.inference_mode():
            return sum(len(r.ids) for r in engine.generate(prompts, SamplingSettings(max_new_tokens=n_new)))

    return answer


def hf(name: str, args: argparse.Namespace) -> Answer:
    """Hugging Face's generate in batches, padded on the left, prompts sorted by length."""
    import torch

    model = _random_hf(common.folder_of(args.model) or args.model, args.device, _dtype(name))
    n_rows, *kind = name.split()[3:]
    options = {"cache_implementation": "static", "disable_compile": kind == ["static"]} if kind else {}

    def answer(prompts: Prompts, n_new: int) -> int:
        ordered, n_tokens = sorted(prompts, key=len), 0
        for place in range(0, len(ordered), int(n_rows)):
            batch = ordered[place : place + int(n_rows)]
            width = max(map(len, batch))
            out = model.generate(
                torch.tensor([[50256] * (width - len(p)) + p for p in batch], device=args.device),
                attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch], device=args.device),
                max_new_tokens=n_new,
                min_new_tokens=n_new,
                do_sample=False,
                pad_token_id=50256,
                **options,
            )
            n_tokens += (out.shape[1] - width) * len(batch)
        return n_tokens

    return answer


def vllm(name: str, args: argparse.Namespace) -> Answer:
    """vLLM's engine on the same shape, with its own random weights."""
    import vllm as library

    with tempfile.TemporaryDirectory() as folder:
        config_of(common.folder_of(args.model) or args.model).save_pretrained(folder)
        model: Any = library.LLM(
            folder, load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16", max_num_seqs=args.rows,
            max_model_len=1024,
        )  # fmt: skip

    def answer(prompts: Prompts, n_new: int) -> int:
        settings = library.SamplingParams(temperature=0, max_tokens=n_new, ignore_eos=True, detokenize=False)
        found = model.generate([{"prompt_token_ids": p} for p in prompts], settings, use_tqdm=False)
        return sum(len(one.outputs[0].token_ids) for one in found)

    return answer


def config_of(model: str) -> Any:
    """The configuration of a folder, or of GPT-2 in the shape of a model of `conf/model`."""
    from transformers import AutoConfig, GPT2Config

    if model not in common.MODELS:
        return AutoConfig.from_pretrained(model)  # nosec B615
    n_layers, n_heads, d_model = common.shape_of(model)
    return GPT2Config(n_layer=n_layers, n_head=n_heads, n_embd=d_model, architectures=["GPT2LMHeadModel"])


def _random_hf(model: str, device: str, dtype: Any) -> Any:
    """A model of transformers whose random weights are drawn on the device."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config_of(model), dtype=dtype).eval()


def chapter_7(name: str, args: argparse.Namespace) -> Answer:
    """One prompt after the other, everything computed anew for every token."""
    import torch

    from benchmarks import reference

    torch.manual_seed(0)
    model = reference.PlainGPT(*common.shape_of(args.model)).to(args.device).eval()
    return lambda prompts, n_new: sum(len(reference.generate(model, p, n_new)) for p in prompts)


def chapter_7_checkout(name: str, args: argparse.Namespace) -> Answer:
    """The book's own code."""
    from benchmarks import checkout

    names = checkout.book(args.ch07)
    model = checkout.model_of(names, args.model).to(args.device).eval()
    return lambda prompts, n_new: sum(len(checkout.generate(names, model, p, n_new)) for p in prompts)


def _dtype(name: str) -> Any:
    import torch

    return torch.bfloat16 if "bf16" in name.split() else torch.float32


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Let a system answer after a short warm-up, and return its figures."""
    import torch  # noqa: F401  # memory is counted above what it takes

    from instruct_lit.core.data.tokenizer import GPT2Tokenizer

    one_by_one = name in (REFERENCE, CHECKOUT)
    by_word = {"chapter": chapter_7, "hf": hf, "vllm": vllm, "ours": ours}
    make = chapter_7_checkout if name == CHECKOUT else by_word[name.split()[0]]
    prompts: Prompts = GPT2Tokenizer().encode_batch(
        [common.alpaca_prompt(record) for record in common.records_of(args.data, "test")]
    )[: args.n_prompts]
    if one_by_one:
        prompts = prompts[:: max(1, len(prompts) // args.sample)][: args.sample]
    memory = common.Memory(args.device)
    answer = make(name, args)
    if args.device == "cuda" and not one_by_one:
        answer(prompts, args.new_tokens)  # records and compiles for all lengths
    else:
        answer(prompts[: 1 if one_by_one else args.rows], 2)
    common.synchronize(args.device)
    start = time.perf_counter()
    n_tokens = answer(prompts, args.new_tokens)
    common.synchronize(args.device)
    return {"tokens_per_s": n_tokens / (time.perf_counter() - start), "n_tokens": n_tokens, **memory.figures()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_arguments(parser)
    parser.add_argument("--rows", type=int, default=110, help="responses that ours writes at the same time")
    parser.add_argument("--n-prompts", type=int, default=common.N_TEST, help="of the test set")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--sample", type=int, default=3, help="prompts that chapter 7's loop answers")
    parser.add_argument("--systems", nargs="+", default=None, help="these rows only, named as the table names them")
    args = parser.parse_args()
    if args.system:
        common.report(measure(args.system, args))
        return
    of_gpu = [*HF_GPU, VLLM, *OURS_GPU] if args.device == "cuda" else []
    of_book = [REFERENCE, *([CHECKOUT] if args.ch07 else [])] if common.folder_of(args.model) is None else []
    all_of_them = [*of_book, *HF, *OURS, *of_gpu]
    systems = args.systems or common.without_slow(all_of_them, args.device)
    passed = common.passed_on(args, "data", "model", "device", "rows", "n_prompts", "new_tokens", "sample", "ch07")
    results = common.alternate("benchmarks.generation", systems, passed, args.rounds, {})
    baselines = {"chapter 7": [REFERENCE, CHECKOUT], "generate's best": [*HF, *HF_GPU]}
    summary = common.table(
        f"{args.n_prompts} test answers, greedy, {args.model}, {args.device}", results, "tokens_per_s", baselines
    )
    common.write_json(args.json, {"summary": summary, "results": results})


if __name__ == "__main__":
    main()
