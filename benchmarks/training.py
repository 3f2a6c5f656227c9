"""Fine-tuning: examples per second and memory of ours and of its peers, alternating in fresh processes.

    python -m benchmarks.training --rounds 3 --json benchmarks/results/training-cpu.json

`--model hf:<folder>` takes a configuration and a tokenizer of transformers, for rows with `lora` and `qlora` as well.
All train the same records with the same model shape (random weights), batch size and optimizer. Peers that are not
installed are named as such; `--peer-python` tells the Python that has them, if it is another one, and `--ch07` a checkout
of LLMs-from-scratch, whose own code then runs too. Tokens are the records' own, without padding; the use of the
matrix rate counts what the records need (`benchmarks.matrix`), not what a system computes.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from benchmarks import common, matrix, systems
from benchmarks.systems import CHECKOUT, LITGPT, REFERENCE, TRL, TRL_LORA, TRL_QLORA, UNSLOTH

MATRIX = "matrix products"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_arguments(parser)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=12)
    parser.add_argument("--batching", nargs="+", default=["padded", "packed", "packed+prefix"], help="layouts of ours")
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=None, help="of ours")
    parser.add_argument("--systems", nargs="+", default=None, help="these rows only, named as the table names them")
    parser.add_argument("--peer-python", nargs="+", default=[], metavar="PEER=PATH", help="trl=… litgpt=…")
    args = parser.parse_args()
    if args.system:
        common.report(
            matrix.rates(args.device, common.shape_of(args.model)[2])
            if args.system == MATRIX
            else systems.measure(args.system, args)
        )
        return
    of_ours = args.precision or common.precisions(args.device)
    layouts = [f"ours {batching} {precision}" for precision in of_ours for batching in args.batching]
    of_book = [REFERENCE, *([CHECKOUT] if args.ch07 else []), *LITGPT]
    if common.folder_of(args.model) is None:
        peers = common.without_slow([*of_book, *TRL], args.device)
    else:
        layouts += [f"ours {args.batching[-1]} {of_ours[-1]} {adapter}" for adapter in ("lora", "qlora")]
        peers = common.without_slow([*TRL, *TRL_LORA, *TRL_QLORA, *UNSLOTH], args.device)
    names = args.systems or [*peers, *layouts]
    passed = common.passed_on(args, "data", "model", "device", "batch_size", "steps", "warm_up", "ch07")
    pythons = dict(entry.split("=", 1) for entry in args.peer_python)
    python_of = {name: pythons[name.split()[0]] for name in names if name.split()[0] in pythons}
    results = common.alternate("benchmarks.training", [MATRIX, *names], passed, args.rounds, python_of)
    rounds = results.pop(MATRIX)
    rates = {precision: statistics.median(found[precision] for found in rounds) for precision in ("fp32", "bf16")}
    need = matrix.need_of(args.data, args.model, args.batch_size)
    for name, found in results.items():
        add_utilisation(found, need, rates["bf16" if "bf16" in name else "fp32"])
    summary = common.table(
        f"fine-tuning {args.model}, batch {args.batch_size}, {args.device}",
        results,
        "examples_per_s",
        {"chapter 7": [REFERENCE, CHECKOUT], "TRL's best": TRL}
        if common.folder_of(args.model) is None
        else {"TRL's best": TRL, "TRL's best LoRA": TRL_LORA, "TRL's best QLoRA": TRL_QLORA},
        {
            "tokens/s": ("tokens_per_s", ",.0f"),
            "use": ("utilisation", ".0%"),
            "GB above imports": ("gb_above_import", ".2f"),
        },
    )
    bounds = {}
    for precision, rate in rates.items():
        bounds[precision] = {"flops_per_s": rate, "examples_per_s": rate / need.flops}
        bounds[precision]["examples_per_s_shared_prefix"] = rate / need.flops_shared
        print(
            f"matrix products alone, {precision}: {rate / 1e9:,.0f} GFLOP/s, {rate / need.flops:.1f} examples/s, "
            f"with the {need.n_prefix} shared tokens once per batch {rate / need.flops_shared:.1f}"
        )
    common.write_json(args.json, {"matrix_products": bounds, "summary": summary, "results": results})


def add_utilisation(rounds: list[dict[str, Any]], need: matrix.Need, flops_per_s: float) -> None:
    """Add tokens/s, the share of the matrix rate and gigabytes above the imports to the figures of a system."""
    for found in rounds:
        if "examples_per_s" in found:
            found["tokens_per_s"] = found["examples_per_s"] * need.n_tokens
            found["utilisation"] = found["examples_per_s"] * need.flops / flops_per_s
            found["gb_above_import"] = found["peak_above_import_bytes"] / 1e9


if __name__ == "__main__":
    main()
