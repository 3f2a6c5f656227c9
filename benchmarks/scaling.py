"""Strong and weak scaling of one and two processes here, and what larger models need on paper.

    python -m benchmarks.scaling --json benchmarks/results/scaling-cpu.json

Measured are steps of the nano model (random weights, 64 tokens an example, one thread a process) under DDP over gloo: strong
scaling keeps the batch of all processes together, weak scaling that of each. On paper are GPT-2 355M and 1.5B on 8 and
64 GPUs; `paper` is the whole arithmetic.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks import common

ROWS = {  # processes, examples of each
    "strong": ["1 32", "2 16"],
    "weak": ["1 16", "2 16"],
}
PAPER = {"355M": 354_823_168, "1.5B": 1_557_611_200}
FLOPS_PER_S = 400e12  # of a GPU in bf16 as training reaches it, 40 % of 989e12
BYTES_PER_S = {8: 200e9, 64: 40e9}  # of one GPU to the others: within a machine, between machines
TOKENS = 16_384  # of one GPU in a step


def measure(n_processes: int, batch_size: int, n_steps: int) -> dict[str, Any]:
    """Examples per second of a job; the first process tells."""
    import torch.multiprocessing as mp

    queue = mp.get_context("spawn").SimpleQueue()
    context = mp.spawn(_process, (n_processes, batch_size, n_steps, free_port(), queue), n_processes, join=False)
    seconds, peak = queue.get()
    context.join()
    return {"examples_per_s": n_processes * batch_size / seconds, "step_s": seconds, "peak_bytes": peak}


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _process(rank: int, n_processes: int, batch_size: int, n_steps: int, port: int, queue: Any) -> None:
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from instruct_lit.core.training.optimizer import adamw, parameter_groups

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=n_processes)
    model = common.random_gpt("nano", context_length=256).train()
    job = DistributedDataParallel(model) if n_processes > 1 else model
    optimizer = adamw(parameter_groups(model.named_parameters(), 0.1), lr=1e-4)
    ids = torch.randint(50256, (batch_size, 65), generator=torch.Generator().manual_seed(rank))
    seconds = []
    for _ in range(3 + n_steps):
        start = time.perf_counter()
        logits = job(ids[:, :-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        queue.put((statistics.median(seconds[3:]), common.peak_memory("cpu")))
    dist.destroy_process_group()


def paper(n: int, n_gpus: int, strategy: str) -> dict[str, float]:
    """Memory, traffic and efficiency of one GPU for `n` parameters, from plain arithmetic.

    State is 16 bytes a parameter (fp32 weight, gradient, two moments), in shards divided by the GPUs. DDP sends and gets
    2 (N-1)/N of the fp32 gradients (ring all-reduce); FSDP gathers bf16 weights twice and scatters fp32 gradients once,
    (N-1)/N of each. A step computes 6 n FLOP a token; half of the traffic is taken as hidden behind the
    computation.
    """
    share = (n_gpus - 1) / n_gpus
    state = 16 * n / (n_gpus if strategy == "fsdp" else 1)
    traffic = share * n * (2 * 4 if strategy == "ddp" else 2 * 2 + 4)
    compute = 6 * n * TOKENS / FLOPS_PER_S
    waiting = 0.5 * traffic / BYTES_PER_S[n_gpus]
    return {
        "state_gb": state / 1e9,
        "traffic_gb": traffic / 1e9,
        "compute_ms": compute * 1e3,
        "traffic_ms": traffic / BYTES_PER_S[n_gpus] * 1e3,
        "efficiency": compute / (compute + waiting),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--system", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.system:
        n_processes, batch_size = (int(word) for word in args.system.split())
        common.report(measure(n_processes, batch_size, args.steps))
        return
    measured: dict[str, Any] = {}
    for name, rows in ROWS.items():
        results = common.alternate("benchmarks.scaling", rows, [f"--steps={args.steps}"], args.rounds, {})
        one, two = (common.median(results[row], "examples_per_s") for row in rows)
        assert one and two
        measured[name] = {"examples_per_s": {"1": one, "2": two}, "efficiency": two / (2 * one), "results": results}
        print(
            f"{name} scaling: {one:.1f} examples/s with one process, {two:.1f} with two, efficiency {two / one / 2:.0%}"
        )
    on_paper = {
        f"{model} {n_gpus} {strategy}": paper(n, n_gpus, strategy)
        for model, n in PAPER.items()
        for n_gpus in BYTES_PER_S
        for strategy in ("ddp", "fsdp")
    }
    for name, found in on_paper.items():
        print(name, {key: round(value, 2) for key, value in found.items()})
    common.write_json(args.json, {"measured": measured, "paper": on_paper})


if __name__ == "__main__":
    main()
