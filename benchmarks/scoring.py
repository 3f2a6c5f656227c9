"""MMLU with five shots: questions per second of our scorer and of lm-evaluation-harness's own HFLM, alternating.

    python -m benchmarks.scoring --hub hub --rounds 3 --json benchmarks/results/scoring-cpu.json

All score the same questions of the same random GPT-2 shape, each in a fresh process; what is timed is the scoring of
the harness's requests, tokenising included, loading is not. `--hub` is a folder with `cais/mmlu` as on the hub.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import common

OURS = ["ours"]
HFLM = ["hflm batch 1", "hflm batch 4", "hflm batch 16"]


def requests_of(args: argparse.Namespace) -> list[Any]:
    """The harness's requests for the questions, with five shots before each."""
    from instruct_lit.suites.harness import Tasks
    from instruct_lit.suites.suite import Suite

    names = [f"mmlu_{subject}" for subject in args.subjects]
    tasks = Tasks(Suite("mmlu", names, ["mmlu/default"]), args.hub.resolve(), "error")
    requests = []
    for task in tasks.tasks.values():
        task.set_config(key="num_fewshot", value=5)
        task.build_all_requests(limit=args.limit)
        requests += task.instances
    return requests


def model_of(name: str, args: argparse.Namespace, folder: Path) -> Any:
    """A random model, for us or as a bundle for HFLM."""
    from instruct_lit.core.bundle import open_model, save_bundle
    from instruct_lit.core.data.template import Template
    from instruct_lit.core.data.tokenizer import GPT2Tokenizer
    from instruct_lit.suites.compat_lm_eval import harness_model
    from instruct_lit.suites.evaluated_model import EvaluatedModel

    model = common.random_gpt(args.model)
    greedy = {"max_new_tokens": 32, "temperature": 0.0, "top_k": None, "top_p": None, "repetition_penalty": 1.0}
    save_bundle(
        folder / "bundle", model, GPT2Tokenizer(), Template("bare", "{{ instruction }}{{ response }}"), greedy, {}
    )
    if name in OURS:
        opened = open_model(folder / "bundle")
        return harness_model(EvaluatedModel(opened.model.to(args.device), opened.tokenizer, opened.template))
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=str(folder / "bundle"), batch_size=int(name.split()[-1]), device=args.device, dtype="float32"
    )


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Score all requests after a short warm-up, and return the figures."""
    import torch  # noqa: F401  # memory is counted above what it takes

    from instruct_lit.accel.hardware import keep_freed_memory

    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    keep_freed_memory()
    requests = requests_of(args)
    with tempfile.TemporaryDirectory() as folder:
        model = model_of(name, args, Path(folder))
        memory = common.Memory(args.device)
        with contextlib.redirect_stderr(open(os.devnull, "w")):
            model.loglikelihood(requests[:8], disable_tqdm=True)
            common.synchronize(args.device)
            start = time.perf_counter()
            scores = model.loglikelihood(requests, disable_tqdm=True)
            common.synchronize(args.device)
        seconds = time.perf_counter() - start
    return {
        "questions_per_s": len(requests) / 4 / seconds,
        "n_questions": len(requests) // 4,
        "sum_of_log_likelihoods": sum(value for value, _ in scores),
        **memory.figures(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_arguments(parser)
    parser.add_argument("--hub", type=Path, default=common.DATA.parents[1] / "hub", help="holds cais/mmlu")
    parser.add_argument("--subjects", nargs="+", default=["anatomy", "virology", "global_facts"])
    parser.add_argument("--limit", type=int, default=100, help="questions of each subject")
    parser.add_argument("--systems", nargs="+", default=[*HFLM, *OURS])
    args = parser.parse_args()
    if args.system:
        common.report(measure(args.system, args))
        return
    passed = common.passed_on(args, "model", "device", "hub", "limit")
    results = common.alternate(
        "benchmarks.scoring", args.systems, [*passed, "--subjects", *args.subjects], args.rounds, {}
    )
    title = f"MMLU, 5 shots, {len(args.subjects)} subjects, {args.model}, {args.device}"
    summary = common.table(title, results, "questions_per_s", {"HFLM's best": HFLM})
    common.write_json(args.json, {"summary": summary, "results": results})


if __name__ == "__main__":
    main()
