"""What all benchmarks share: records, model shapes, memory, runs in fresh processes, tables."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instruct_lit.core.model.gpt import GPT

IMPORTED = time.monotonic()
DATA = Path("../shared/data/instructions/book-1100.json")
MODELS = ("nano", "gpt2", "gpt2-medium")
HF = "hf:"
N_TRAIN, N_TEST = 935, 110  # the book's split, in file order


def add_arguments(parser: ArgumentParser) -> None:
    """The options that training and generation share."""
    parser.add_argument("--data", type=Path, default=DATA, help="the 1,100 records of chapter 7")
    parser.add_argument("--model", type=_model, default="gpt2", help=f"{', '.join(MODELS)}, or hf:<folder>")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ch07", type=Path, default=None, help="a checkout of LLMs-from-scratch")
    parser.add_argument("--json", type=Path, default=None, help="where the figures are written")
    parser.add_argument("--system", default=None, help="measure this one here and now, without a table")


def _model(name: str) -> str:
    """A model of `conf/model`, or `hf:` and a folder with the configuration and the tokenizer of one of transformers."""
    assert name in MODELS or (name.startswith(HF) and Path(name.removeprefix(HF)).is_dir())
    return name


def folder_of(model: str) -> str | None:
    """The folder of a model of transformers; None for one of `conf/model`."""
    return model.removeprefix(HF) if model.startswith(HF) else None


def records_of(path: Path, split: str = "train") -> list[dict[str, str]]:
    """The book's records of a split."""
    records = json.loads(path.read_text(encoding="utf-8"))
    return records[:N_TRAIN] if split == "train" else records[N_TRAIN : N_TRAIN + N_TEST]


def shape_of(model: str) -> tuple[int, int, int]:
    """Layers, heads and width of a model."""
    from omegaconf import OmegaConf

    if (folder := folder_of(model)) is not None:
        text = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        return text["num_hidden_layers"], text["num_attention_heads"], text["hidden_size"]

    from instruct_lit.config.compose import CONF

    node = OmegaConf.load(CONF / "model" / f"{model}.yaml")
    return node.n_layers, node.n_heads, node.d_model


def random_gpt(model: str, **shape: int) -> GPT:
    """A GPT of ours with random weights in the shape of a model of `conf/model`."""
    from instruct_lit.config.model_builders import install_satellites
    from instruct_lit.core.model.gpt import GPT, GPTConfig

    install_satellites()
    n_layers, n_heads, d_model = shape_of(model)
    gpt = GPT(GPTConfig(d_model=d_model, n_layers=n_layers, n_heads=n_heads, **shape))
    gpt.init_weights(0)
    return gpt


def passed_on(args: Namespace, *names: str) -> list[str]:
    """The command line of those options that are given, for the process that measures."""
    values = {name: getattr(args, name) for name in names}
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None]


def alpaca_prompt(record: Mapping[str, str]) -> str:
    """The Alpaca prompt in plain Python, for the peers."""
    parts = [
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
        f"### Instruction:\n{record['instruction']}",
    ]
    if record.get("input"):
        parts.append(f"### Input:\n{record['input']}")
    return "\n\n".join([*parts, "### Response:\n"])


def precisions(device: str) -> list[str]:
    """In which the device multiplies at speed; the rows of a table are in these where nothing else is asked for."""
    from instruct_lit.accel.compat_torch import has_bf16_products

    return ["fp32", "bf16"] if device == "cuda" or has_bf16_products() else ["fp32"]


def without_slow(names: Sequence[str], device: str) -> list[str]:
    """The systems whose precision, if their name says one, is among the device's."""
    slow = {"fp32", "bf16"} - set(precisions(device))
    return [name for name in names if not slow & set(name.split())]


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
    return _of_status("VmHWM")


class Memory:
    """Peak memory of this process, whole and above what the imports before its making took."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.at_start = 0 if device == "cuda" else _of_status("VmRSS")

    def figures(self) -> dict[str, int]:
        peak = peak_memory(self.device)
        return {"peak_bytes": peak, "peak_above_import_bytes": peak - self.at_start}


def _of_status(key: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0]) * 1024


class Clock:
    """Seconds of `n_steps` steps that follow `n_warm_up` others; `tick` after each of them."""

    def __init__(self, n_warm_up: int, n_steps: int, device: str) -> None:
        self.first, self.last, self.device = n_warm_up, n_warm_up + n_steps, device
        self.n_ticks = 0
        self.start = self.seconds = float("nan")

    def tick(self) -> None:
        self.n_ticks += 1
        if self.n_ticks < 3 or self.n_ticks % 20 == 0:  # of a row that takes too long this is what is known
            print(f"step {self.n_ticks} after {time.monotonic() - IMPORTED:.1f} s", file=sys.stderr, flush=True)
        if self.n_ticks not in (self.first, self.last):
            return
        synchronize(self.device)
        if self.n_ticks == self.first:
            self.start = time.perf_counter()
        else:
            self.seconds = time.perf_counter() - self.start


def timed(step: Callable[[], Any], n_warm_up: int, n_steps: int, device: str) -> float:
    """Seconds for `n_steps` calls after `n_warm_up` calls."""
    clock = Clock(n_warm_up, n_steps, device)
    for _ in range(n_warm_up + n_steps):
        step()
        clock.tick()
    return clock.seconds


def cycle(items: Iterable[Any]) -> Iterator[Any]:
    """The items again and again, each pass anew."""
    while True:
        yield from items


def alternate(
    module: str, systems: Sequence[str], arguments: Sequence[str], n_rounds: int, python_of: Mapping[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """Run `module --system NAME` for all systems in turn, `n_rounds` times, each in a fresh process.

    A system that fails gives `{"error": reason}` and is not tried again.
    """
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    for number in range(n_rounds):
        for name in systems:
            if results[name] and "error" in results[name][-1]:
                continue
            command = [python_of.get(name, sys.executable), "-m", module, "--system", name, *arguments]
            environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            results[name].append(_result(done.returncode, done.stdout, done.stderr))
            print(f"round {number + 1}, {name}: {results[name][-1]}", file=sys.stderr, flush=True)
    return results


def _result(status: int, out: str, err: str) -> dict[str, Any]:
    lines = [line for line in out.splitlines() if line.startswith("RESULT ")]
    if status == 0 and lines:
        return json.loads(lines[-1].removeprefix("RESULT "))
    reason = (err.strip().splitlines() or ["no output"])[-1]
    if status == -signal.SIGKILL:
        reason = "killed, as the system does where memory runs out"
    if reason.startswith("ModuleNotFoundError"):
        reason = f"not installed: {reason.split()[-1]}"
    return {"error": reason}


def report(result: Mapping[str, Any]) -> None:
    """Hand a measurement to the process that asked for it."""
    print("RESULT " + json.dumps(result), flush=True)


def median(results: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """The median over the rounds that have this figure."""
    values = [r[key] for r in results if r.get(key) is not None]
    return statistics.median(values) if values else None


def table(
    title: str,
    results: Mapping[str, list[dict[str, Any]]],
    speed: str,
    baselines: Mapping[str, Sequence[str]],
    columns: Mapping[str, tuple[str, str]] | None = None,
) -> dict[str, Any]:
    """Print medians with spread and ratios against baselines (the fastest of each group), and return them.

    `columns` are further figures: heading → (key of the result, format). The memory is compared with the leanest system
    of the first baseline.
    """
    from rich.console import Console
    from rich.table import Table

    def best(names: Sequence[str], key: str, choose: Callable[..., Any]) -> float | None:
        return choose((m for n in names if (m := median(results.get(n, ()), key)) is not None), default=None)

    fastest = {label: best(names, speed, max) for label, names in baselines.items()}
    leanest = best(next(iter(baselines.values()), ()), "peak_bytes", min)
    columns = columns or {}
    shown = Table(title=title)
    memory = f"× {next(iter(baselines))}" if leanest else None
    heads = [
        speed.replace("_per_s", "/s"),
        "min to max",
        *(f"× {label}" for label in baselines),
        *columns,
        "peak GB",
        *filter(None, [memory]),
    ]
    shown.add_column("system", no_wrap=True)
    for head in heads:
        shown.add_column(head, justify="right")
    summary: dict[str, Any] = {}
    failures = []
    for name, rounds in results.items():
        middle, peak = median(rounds, speed), median(rounds, "peak_bytes")
        if middle is None or peak is None:
            summary[name] = rounds[-1]
            shown.add_row(name, "–")
            failures.append(f"{name}: {rounds[-1].get('error')}")
            continue
        speeds = [r[speed] for r in rounds if speed in r]
        ratios = {label: middle / base if base else None for label, base in fastest.items()}
        others = {head: median(rounds, key) for head, (key, _) in columns.items()}
        cells = [f"{r:.2f}" if r else "" for r in ratios.values()]
        cells += ["" if x is None else format(x, columns[head][1]) for head, x in others.items()]
        cells.append(f"{peak / 1e9:.2f}")
        if leanest:
            cells.append(f"{peak / leanest:.2f}")
        shown.add_row(name, _short(middle), f"{_short(min(speeds))}–{_short(max(speeds))}", *cells)
        summary[name] = {
            "median": middle, "min": min(speeds), "max": max(speeds), "ratios": ratios, **others,
            "peak_gb": peak / 1e9, "peak_ratio": peak / leanest if leanest else None,
        }  # fmt: skip
    shown.caption = "\n".join(failures) or None
    Console(width=132).print(shown)
    return summary


def _short(x: float) -> str:
    return f"{x:,.{2 if x < 20 else 1 if x < 200 else 0}f}"


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Keep the figures with what they were measured on."""
    if path is None:
        return
    import torch

    from instruct_lit.config.provenance import processor

    machine = {
        "processor": processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "n_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    options = [re.sub(r"(^|[=:])/\S+", r"\1<path>", option) for option in sys.argv[1:]]  # not of this machine's folders
    command = ["python -m", Path(sys.argv[0]).parent.name + "." + Path(sys.argv[0]).stem, *options]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "command": " ".join(command), **content}, indent=1) + "\n")
