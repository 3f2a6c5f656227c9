"""The rows of the table of figures on a GPU, the most important first: each a process of at most a minute.

    bash benchmarks/gpu.sh <folder of wheels> [<folder for results>]
    python -m benchmarks.gpu --summary <folder for results>

A row's result is appended to `rows.jsonl` when the row ends, and its output to `log.txt` beside it, so that nothing is
lost when the machine is taken away; the table is in `table.md` at the end. Rows that the time does not reach are named. `--device cpu` runs the same rows on tiny
shapes: it shows that each starts, is bounded and is written. Models are made of configurations alone, with GPT-2's
tokenizer, and records of random words where `--data` is not there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Any

from benchmarks import matrix

ROOT = Path(__file__).resolve().parents[1]
LONGEST_S = 60  # of a row
SHORTEST_S = 8  # left, for which a row is started
RESULT = "RESULT "  # begins the line with a row's figures; after it the process only tears down
BOOK = ROOT / "../shared/data/instructions/book-1100.json"
ANSWERS = ROOT / "../shared/data/instructions/alpaca-gpt4-999.json"
WORDS = "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they"
TESTS = [
    "tests/accel/test_decode_loop.py", "tests/hf/test_generation.py", "tests/accel/test_cuda_graphs.py",
    "tests/accel/test_step.py", "tests/accel/test_attention_varlen.py", "tests/core/generation/test_engine.py",
    "tests/invariants/test_layouts.py", "tests/accel/test_cross_entropy.py", "tests/core/model/test_gpt.py",
    "tests/core/training/test_module.py",
]  # fmt: skip
# Width, width of the MLP, layers, heads, heads of keys, vocabulary, whether the head is tied.
SHAPES: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    "llama-1b": (2048, 8192, 16, 32, 8, 128256, True),
    "smollm2-135m": (576, 1536, 30, 9, 3, 49152, True),
    "llama-8b": (4096, 14336, 32, 32, 8, 128256, False),
}
OURS, WRAPPED = "ours packed+prefix bf16 compiled", "trl bf16 wrapped liger"
RATIOS = [
    (f"llama-1b, {OURS}", f"llama-1b, {WRAPPED}"),
    ("llama-1b, ours packed+prefix bf16 liger", f"llama-1b, {OURS}"),
    (f"llama-1b, {OURS}", f"llama-1b, {OURS} eager"),
    (f"llama-1b, {OURS} lora", f"llama-1b, {OURS}"),
    (f"llama-1b, {OURS} lora", f"llama-1b, {WRAPPED} lora frozen"),
    ("gpt2, answers of 110, ours bf16", "gpt2, answers of 110, hf generate bf16 110"),
    ("gpt2, answers of 110, ours bf16", "gpt2, answers of 110, ours bf16 eager"),
]
ONE_STEP = ["--warm-up", "1", "--steps", "1"]
TINY = (64, 128, 2, 4, 2, 50304, True)


@dataclass(frozen=True)
class Row:
    """A command, and what it should reach."""

    name: str
    command: list[str]
    target: str = ""


def rows(device: str, folder: Path) -> Iterator[Row]:
    """All rows, the most important first."""
    tiny = device == "cpu"
    python = [sys.executable, "-m"]
    tests = [*python, "pytest", "-vv", "-m", "not gpu and not slow" if tiny else "gpu", *TESTS[: 1 if tiny else None]]

    def training(model: str, system: str, target: str = "", data: str = "answers", batch: int = 32) -> Row:
        size = ["--batch-size", "4", *ONE_STEP] if tiny else ["--batch-size", str(batch)]
        # Ours for three epochs of 30 batches, since batches are recorded mostly in the first two.
        n_warm_up, n_steps = (60, 30) if system.startswith("ours") and batch == 32 else (16, 10)
        steps = [] if tiny else ["--warm-up", str(n_warm_up), "--steps", str(n_steps)]
        there = system.replace(" compiled", "").replace(" liger", "") if tiny else system
        command = [*python, "benchmarks.training", "--system", there, "--model", f"hf:{folder / model}"]
        options = ["--device", device, "--data", str(folder / f"{data}.json"), *size, *steps]
        return Row(f"{model}, {system}", [*command, *options], target)

    def answering(model: str, system: str, n_rows: int, n_prompts: int, target: str = "") -> Row:
        size = [min(n_rows, 4), 4, 4] if tiny else [n_rows, n_prompts, 64]
        options = zip(("--rows", "--n-prompts", "--new-tokens"), map(str, size), strict=True)
        name = "nano" if tiny and model == "gpt2" else model if model == "gpt2" else f"hf:{folder / model}"
        command = [*python, "benchmarks.generation", "--system", system, "--model", name, "--device", device]
        data = ["--data", str(folder / "book.json")]
        return Row(f"{model}, answers of {n_rows}, {system}", [*command, *data, *sum(options, ())], target)

    # Meanwhile each compiled row takes a step, if there are processors for all, so that later it finds its kernels in
    # the compiler's cache on the disk.
    compiled = [training(model, system) for model in ("llama-1b", "smollm2-135m") for system in (OURS, f"{OURS} lora")]
    jobs = [f"{shlex.join([*row.command, *ONE_STEP])} > /dev/null 2>&1 & " for row in compiled]
    has_processors = not tiny and (os.cpu_count() or 1) > 2 * len(jobs)
    script = f"{shlex.join([*tests, '-k', 'not compiled'])}; status=$?; wait; exit $status"
    script = "".join(jobs) + script if has_processors else script
    yield Row("tests", ["bash", "-c", script], "all pass")
    yield training("llama-1b", OURS, "≥ 1.35 × TRL wrapped, at most its memory, ≥ 55 % of the matrix rate")
    yield training("llama-1b", WRAPPED)
    yield answering("gpt2", "ours bf16", 110, 110, "≥ 20,000 tokens/s, ≥ 15 × generate")
    yield answering("gpt2", "hf generate bf16 110", 110, 110)
    yield answering("llama-1b", "ours bf16", 64, 64, "≥ 8,000 tokens/s")
    yield answering("gpt2", "ours bf16", 1, 8, "≥ 400 tokens/s")
    yield training("llama-1b", f"{OURS} lora", "≥ 1.3 × all weights, ≥ 1.5 × TRL's LoRA")
    yield training("llama-1b", f"{WRAPPED} lora frozen")
    yield Row(
        "matrix products",
        [*python, "benchmarks.training", "--system", "matrix products", "--model", f"hf:{folder / 'llama-1b'}",
         "--device", device],
    )  # fmt: skip

    def starting(model: str, target: str) -> Row:
        size = [] if model == "llama-1b" else ["adapter=lora"]
        of_run = [
            "model=hf", f"model.path={folder / model}", "model.pretrained=false", "data=files",
            f"data.path={folder / 'answers.json'}", f"data.batch_size={4 if tiny else 32 if not size else 8}",
            "evaluate_base=false", "trainer.limit_val_batches=0",
            f"trainer.accelerator={'cpu' if tiny else 'gpu'}", f"paths.cache={folder / 'cache'}",
        ]  # fmt: skip
        return Row(f"{model}, first step", [*python, "benchmarks.startup", *of_run, *size], target)

    yield starting("llama-1b", "within 20 s")
    yield training("smollm2-135m", OURS, "≥ 5 × 174.6 examples/s")
    yield training("smollm2-135m", f"{OURS} lora", "≥ 5 × 90.2 examples/s")
    yield training("llama-8b", "ours packed+prefix bf16 lora", "batch 16 of 512 tokens fits 80 GB", "long", 16)
    yield training("llama-8b", "ours packed+prefix bf16 qlora eager", "batch 2 of 512 tokens fits 16 GB", "long", 2)
    yield starting("llama-8b", "within 60 s")
    yield training("llama-1b", "ours packed+prefix bf16")
    yield training("llama-1b", "ours packed+prefix bf16 liger", "decides which of Liger and compile=true is faster")
    yield training("llama-1b", f"{OURS} eager", "what recording saves or costs")
    yield answering("gpt2", "hf generate bf16 110 compiled", 110, 110)
    yield answering("llama-1b", "hf generate bf16 64 compiled", 64, 64)
    yield answering("gpt2", "ours bf16 eager", 110, 110)
    yield answering("gpt2", "vllm bf16", 110, 110)
    yield Row("tests of compiled steps", [*tests, "-k", "compiled"], "all pass")
    yield training("llama-1b", "trl bf16 liger")
    yield training("smollm2-135m", WRAPPED)
    yield training("smollm2-135m", f"{WRAPPED} lora frozen")
    yield training("llama-8b", "trl bf16 qlora", "", "long", 2)
    yield answering("gpt2", "hf generate bf16 110 static", 110, 110)
    yield answering("llama-1b", "hf generate bf16 64", 64, 64)


def prepare(folder: Path, tiny: bool, book: Path, answers: Path) -> None:
    """Write the folders of the models, each a configuration and a tokenizer, and the records."""
    import transformers

    from benchmarks.systems import gpt2_tokenizer

    tokenizer = gpt2_tokenizer()
    for name, shape in SHAPES.items():
        width, mlp, layers, heads, of_keys, n_vocab, tied = TINY if tiny else shape
        transformers.LlamaConfig(
            hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=of_keys, vocab_size=n_vocab, tie_word_embeddings=tied, max_position_embeddings=2048,
            architectures=["LlamaForCausalLM"], bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id, dtype="bfloat16",
        ).save_pretrained(folder / name)  # fmt: skip
        tokenizer.save_pretrained(folder / name)
    chance = random.Random(0)  # nosec B311
    for name, given, median, spread in (("book", book, 8, 0.6), ("answers", answers, 130, 0.6), ("long", None, 450, 0)):
        if given is not None and given.is_file() and not tiny:
            (folder / f"{name}.json").write_bytes(given.read_bytes())
            continue
        lengths = [chance.lognormvariate(0, spread) * min(median, 12 if tiny else median) for _ in range(1100)]
        records = [
            {"instruction": words(chance, 14), "input": "", "output": words(chance, min(480, 1 + round(n)))}
            for n in lengths
        ]
        (folder / f"{name}.json").write_text(json.dumps(records))


def words(chance: random.Random, n: int) -> str:
    """Random words, about a token each."""
    return " ".join(chance.choices(WORDS.split(), k=n))


def run(row: Row, seconds: float, log: Path) -> dict[str, Any]:
    """Run a row until it has a result, for at most so many seconds, end all it started, and return the result."""
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(row.command, stdout=file, stderr=file, cwd=ROOT, start_new_session=True)
        try:
            while process.poll() is None and time.monotonic() - start < seconds and not _figures(log):
                time.sleep(0.05)
        finally:
            status = process.poll()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the row's own group: all that it started
            process.wait()
    figures = _figures(log)
    if figures or status == 0:
        shown = "done"
    else:
        shown = f"stopped after {seconds:.0f} s" if status is None else f"exit status {status}"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    found = json.loads(figures[-1]) if figures else {"last_line": (lines or ["no output"])[-1][:300]}
    return {"row": row.name, "status": shown, "seconds": round(time.monotonic() - start, 1), **found}


def _figures(log: Path) -> list[str]:
    """What stands behind `RESULT` in the whole lines that a row has written."""
    lines = log.read_text(errors="replace").splitlines(keepends=True)
    return [line.removeprefix(RESULT) for line in lines if line.startswith(RESULT) and line.endswith("\n")]


def summary(folder: Path, work: Path | None = None) -> str:
    """The results as a table, and the ratios that the targets name."""
    results = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    speeds = {r["row"]: r.get("examples_per_s") or r.get("tokens_per_s") for r in results}
    lines = ["| row | result | peak GB | took, s | target |", "|---|---|---|---|---|"]
    for result in results:
        speed = speeds[result["row"]]
        unit = "examples/s" if "examples_per_s" in result else "tokens/s"
        if speed:
            shown = f"{speed:,.1f} {unit}"
        elif "first_step_s" in result:
            shown = f"{result['first_step_s']:.1f} s"
        elif "bf16" in result:
            shown = f"{result['bf16'] / 1e12:,.0f} TFLOP/s in bf16"
        else:
            shown = ": ".join(filter(None, (result["status"], result.get("last_line"))))
        peak = f"{result['peak_bytes'] / 1e9:.1f}" if "peak_bytes" in result else ""
        lines.append(f"| {result['row']} | {shown} | {peak} | {result.get('seconds', '')} | {result['target']} |")
    for one, other in RATIOS:
        if speeds.get(one) and speeds.get(other):
            lines.append(f"{one} : {other} = {speeds[one] / speeds[other]:.2f}")
    rate, trained = next((r["bf16"] for r in results if "bf16" in r), None), f"llama-1b, {OURS}"
    if rate and speeds.get(trained) and work is not None:
        need = matrix.need_of(work / "answers.json", f"hf:{work / 'llama-1b'}", 32)
        lines.append(f"{trained}: {speeds[trained] * need.flops / rate:.0%} of the matrix rate")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"), help="where results and logs are written")
    parser.add_argument("--seconds", type=float, default=470, help="for everything")
    parser.add_argument("--longest", type=float, default=LONGEST_S, help="seconds of a row")
    parser.add_argument("--only", default="", help="rows whose name contains this text")
    parser.add_argument("--start", default="", help="the first row whose name contains this text, and those after it")
    parser.add_argument("--book", type=Path, default=BOOK, help="records whose prompts are answered")
    parser.add_argument("--data", type=Path, default=ANSWERS, help="records that are trained on")
    parser.add_argument("--summary", type=Path, default=None, help="print the table of a folder of results")
    args = parser.parse_args()
    if args.summary is not None:
        print(summary(args.summary))
        return
    end = time.monotonic() + args.seconds
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, (args.out / "rows.jsonl").open("w") as results:
        work, output = Path(temporary).resolve(), Path(temporary) / "output.txt"
        prepare(work, args.device == "cpu", args.book, args.data)
        (args.out / "log.txt").write_text("")
        following = dropwhile(lambda row: args.start not in row.name, rows(args.device, work))
        for row in (row for row in following if args.only in row.name):
            left = end - time.monotonic()
            result: dict[str, Any] = {"row": row.name, "status": "not reached"}
            if left >= SHORTEST_S:
                result = run(row, min(args.longest, left), output)
                with (args.out / "log.txt").open("a") as log:
                    log.write(f"=== {row.name}\n{output.read_text(errors='replace')}\n")
            results.write(json.dumps({**result, "target": row.target}, ensure_ascii=False) + "\n")
            results.flush()
            print(json.dumps(result, ensure_ascii=False), flush=True)
        table = summary(args.out, work)
    (args.out / "table.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
