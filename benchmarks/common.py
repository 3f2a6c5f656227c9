"""What all benchmarks share: records, the machine's matrix rate, memory, runs in fresh processes, tables."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

SHAPES = {  # n_layers, n_heads, d_model
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "10m": (6, 6, 240),
}
BATCH_SIZE = 8


def records_of(path: Path) -> list[dict[str, str]]:
    """The records of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def alpaca_prompt(record: Mapping[str, str]) -> str:
    """The Alpaca prompt in plain Python, for the peers."""
    parts = [
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
        f"### Instruction:\n{record['instruction']}",
    ]
    if record.get("input"):
        parts.append(f"### Input:\n{record['input']}")
    return "\n\n".join([*parts, "### Response:\n"])


def rates(device: str) -> dict[str, float]:
    """Measured FLOP/s of matrix products in GPT-2's shapes (512 tokens, 768 → 3072), by precision."""
    import torch

    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(*shape, device=device, dtype=dtype) for shape in ((512, 768), (768, 3072)))
        best = float("inf")
        for _ in range(30):
            synchronize(device)
            start = time.perf_counter()
            for _ in range(4):
                a @ b
            synchronize(device)
            best = min(best, time.perf_counter() - start)
        found[name] = 4 * 2 * 512 * 768 * 3072 / best
    return found


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def peak_memory(device: str) -> int:
    """Peak bytes of this process: allocations on a GPU, otherwise resident memory."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def timed(step: Callable[[], Any], n_warm_up: int, n_steps: int, device: str) -> float:
    """Seconds for `n_steps` calls after `n_warm_up` calls."""
    for _ in range(n_warm_up):
        step()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(n_steps):
        step()
    synchronize(device)
    return time.perf_counter() - start


def cycle(items: Sequence[Any]) -> Iterator[Any]:
    """The items again and again."""
    while True:
        yield from items


def alternate(
    module: str, systems: Sequence[str], arguments: Sequence[str], n_rounds: int, python_of: Mapping[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """Run `module --system NAME` for all systems in turn, `n_rounds` times, each in a fresh process."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    for number in range(n_rounds):
        for name in systems:
            command = [python_of.get(name, sys.executable), "-m", module, "--system", name, *arguments]
            done = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"}
            )
            lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            if done.returncode or not lines:
                reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
                results[name].append({"error": reason})
            else:
                results[name].append(json.loads(lines[-1].removeprefix("RESULT ")))
            print(f"round {number + 1}, {name}: {results[name][-1]}", file=sys.stderr, flush=True)
    return results


def report(result: Mapping[str, Any]) -> None:
    """Hand a measurement to the process that asked for it."""
    print("RESULT " + json.dumps(result), flush=True)


def table(
    title: str, results: Mapping[str, list[dict[str, Any]]], speed: str, baselines: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Print medians with spread and ratios against baselines (the fastest of each group), and return them."""
    from rich.console import Console
    from rich.table import Table

    def values(name: str, key: str) -> list[float]:
        return [r[key] for r in results[name] if key in r]

    best = {
        label: max(
            (statistics.median(values(n, speed)) for n in names if n in results and values(n, speed)), default=None
        )
        for label, names in baselines.items()
    }
    shown = Table(title=title)
    for column in ("system", speed, "min to max", *(f"× {label}" for label in baselines), "peak GB"):
        shown.add_column(column, justify="left" if column == "system" else "right")
    summary: dict[str, Any] = {}
    for name in results:
        speeds = values(name, speed)
        if not speeds:
            shown.add_row(name, results[name][-1].get("error", "")[:40], *[""] * (len(baselines) + 2))
            summary[name] = results[name][-1]
            continue
        median = statistics.median(speeds)
        ratios = {label: median / base if base else None for label, base in best.items()}
        memory = statistics.median(values(name, "peak_bytes")) / 1e9
        cells = [f"{r:.2f}" if r else "" for r in ratios.values()]
        shown.add_row(name, f"{median:.2f}", f"{min(speeds):.2f}–{max(speeds):.2f}", *cells, f"{memory:.2f}")
        summary[name] = {"median": median, "min": min(speeds), "max": max(speeds), "ratios": ratios, "peak_gb": memory}
    Console(width=100).print(shown)
    return summary


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Keep the figures with what they were measured on."""
    if path is None:
        return
    import torch

    machine = {
        "processor": _processor(),
        "n_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"machine": machine, "command": " ".join(["python -m", *_command()]), **content}, indent=1) + "\n"
    )


def _command() -> list[str]:
    return [Path(sys.argv[0]).parent.name + "." + Path(sys.argv[0]).stem, *sys.argv[1:]]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
