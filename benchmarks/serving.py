"""The server under load: answers per second and latency at 1, 8 and 32 clients at a time, and a soak.

    python -m benchmarks.serving --run outputs/train/<date>/<time> --json benchmarks/results/serving-cpu.json
    python -m benchmarks.serving --run outputs/train/<date>/<time> --soak 600

Without `--run` the model has random weights of the shape `--model`. The server is a process of its own; the clients are
OpenAI's own, asynchronous, each asking its next question when its last is answered. Every answer is compared with that
of the engine alone; at one client the answers are sequential, and the others are measured against that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks import common

CONCURRENCY = (1, 8, 32)


def random_bundle(model: str, folder: Path) -> Path:
    """A bundle with random weights of a shape of `conf/model`."""
    from omegaconf import OmegaConf

    from instruct_lit.config.compose import CONF
    from instruct_lit.core.bundle import save_bundle
    from instruct_lit.core.data.template import Template
    from instruct_lit.core.data.tokenizer import GPT2Tokenizer
    from instruct_lit.core.generation.sampling import SamplingSettings

    template = Template("alpaca", OmegaConf.load(CONF / "template" / "alpaca.yaml").text)
    save_bundle(
        folder / model,
        common.random_gpt(model),
        GPT2Tokenizer(),
        template,
        {**vars(SamplingSettings()), "stop": []},
        {},
    )
    return folder / model


def questions_of(n: int) -> list[str]:
    """Different questions of different lengths."""
    return [f"Question {i}: what comes after {i}{', and why' * (i % 4)}?" for i in range(n)]


def alone(run: Path, questions: list[str], n_tokens: int) -> list[str]:
    """What the engine answers without a server."""
    from instruct_lit.config.model_builders import install_satellites
    from instruct_lit.core.data.example import Example
    from instruct_lit.core.generation.engine import Engine
    from instruct_lit.core.generation.sampling import SamplingSettings
    from instruct_lit.serving.chat_model import open_chat_models

    install_satellites()
    (chat_model,) = open_chat_models([str(run)], None, None)
    prompts = [chat_model.prompt_ids(Example(question, "")) for question in questions]
    settings = chat_model.with_stops(SamplingSettings(max_new_tokens=n_tokens))
    return [r.text for r in Engine(chat_model.model, chat_model.tokenizer, 16).generate(prompts, settings)]


async def load(
    url: str, questions: list[str], expected: list[str], n_tokens: int, n_clients: int, seconds: float
) -> dict[str, Any]:
    """Ask for so many seconds; every answer must be the expected one."""
    from openai import AsyncOpenAI

    end, latencies, n_written, n_wrong = time.perf_counter() + seconds, [], 0, 0
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client:
        name = (await client.models.list()).data[0].id

        async def ask(number: int) -> None:
            nonlocal n_written, n_wrong
            while time.perf_counter() < end:
                number = (number + n_clients) % len(questions)
                start = time.perf_counter()
                answer = await client.chat.completions.create(
                    model=name, messages=[{"role": "user", "content": questions[number]}], max_tokens=n_tokens,
                    temperature=0,
                )  # fmt: skip
                latencies.append(time.perf_counter() - start)
                n_written += answer.usage.completion_tokens
                n_wrong += answer.choices[0].message.content != expected[number]

        start = time.perf_counter()
        await asyncio.gather(*(ask(number) for number in range(n_clients)))
        took = time.perf_counter() - start
    ordered = sorted(latencies)
    percentiles = {f"p{p}_s": ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in (50, 90, 99)}
    rates = {"answers_per_s": len(latencies) / took, "tokens_per_s": n_written / took}
    return {"n_clients": n_clients, "n_answers": len(latencies), "n_wrong": n_wrong, **rates, **percentiles}


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) * 1024


def counted(url: str) -> dict[str, float]:
    """What the server itself says when all is answered: requests that ended as they should, and those still in it."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=60) as page:
        lines = [line.rsplit(" ", 1) for line in page.read().decode().splitlines() if not line.startswith("#")]
    values = {name: float(value) for name, value in lines}
    return {
        "n_finished": sum(
            values.get(f'instruct_lit_requests_total{{finish_reason="{r}"}}', 0) for r in ("stop", "length")
        ),
        "n_left": values["instruct_lit_rows_active"] + values["instruct_lit_requests_waiting"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=None)
    parser.add_argument("--model", choices=common.MODELS, default="gpt2")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of an answer at most")
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--soak", type=float, default=0, help="seconds of load at 32 clients, memory watched")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = args.run or random_bundle(args.model, Path(folder))
        questions = questions_of(64)
        expected = alone(run, questions, args.tokens)
        command = [sys.executable, "-m", "instruct_lit.serve", f"run={run.resolve()}", "port=0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split(" at ")[1].split(" ")[0]
            memory = [resident(server.pid)]
            warm = asyncio.run(load(url, questions, expected, args.tokens, 32, 3))
            memory.append(resident(server.pid))
            rows = []
            for n_clients in () if args.soak else CONCURRENCY:
                rows.append(asyncio.run(load(url, questions, expected, args.tokens, n_clients, args.seconds)))
                rows[-1]["speedup"] = rows[-1]["answers_per_s"] / rows[0]["answers_per_s"]
                print(json.dumps(rows[-1]), flush=True)
            end = time.perf_counter() + args.soak
            while time.perf_counter() < end:
                rows.append(asyncio.run(load(url, questions, expected, args.tokens, 32, min(30, args.soak))))
                memory.append(resident(server.pid))
                print(json.dumps({**rows[-1], "resident_mb": memory[-1] / 1e6}), flush=True)
            total = {"n_answers": sum(row["n_answers"] for row in (warm, *rows)), **counted(url)}
            total["n_wrong"] = sum(row["n_wrong"] for row in (warm, *rows))
            print(json.dumps({**total, "resident_mb": [round(n / 1e6, 1) for n in memory]}))
        finally:
            server.terminate()
            server.wait()
    figures = {"rows": rows, "total": total, "resident_bytes": memory, "run": str(args.run), "tokens": args.tokens}
    common.write_json(args.json, figures)
    if total["n_wrong"] or total["n_left"] or total["n_finished"] != total["n_answers"]:
        raise SystemExit("answers are lost or mixed")


if __name__ == "__main__":
    main()
