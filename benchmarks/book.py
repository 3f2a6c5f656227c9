"""The recipes of LLMs-from-scratch, chapter 7, run here and put beside what the book publishes.

    python -m benchmarks.book --published ../shared/data/judge
    python -m benchmarks.book --seeds 1,2,3 --judge judge=ollama --judge judge.model=llama3 --json benchmarks/results/book.json

The first form needs no weights: the published scores and answers, with intervals, and how far apart two published means have
to be to differ. The second trains each recipe with each seed, answers the 110 test records, asks a judge, and prints mean and
interval over seeds beside the published value (snapshot 28c65cd). It needs the weights of GPT-2 355M (1.4 GB), a GPU of 16 GB
or patience, the 52,002 records of Alpaca for that recipe, and Llama 3 8B in Ollama for the scores. `--set key=value` is
an override of every training run.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common

# What each recipe overrides, and the judge's mean that the book publishes.
RECIPES: dict[str, tuple[tuple[str, ...], float]] = {
    "as in the book": ((), 49.45),
    "Phi-3 prompt": (("template=phi3",), 48.87),
    "masked instructions": (("data.mask_prompt=true",), 47.73),
    "52k Alpaca": (("data=alpaca", "data.split={train:0.85,val:0.05,test:0.1}", "data.max_length=512"), 48.16),
    "LoRA": (("adapter=lora", "adapter.rank=16", "adapter.alpha=16"), 50.23),
}
LOSSES = {"before, validation": 3.762, "at the end, training": 0.299, "at the end, validation": 0.657}
# Published means of scores: the file of the scores, and the mean in the notebook or, where it has none, of the file.
SCORES = {
    "GPT-4, model 1": ("gpt4-model-1-response.json", 78.48),
    "GPT-4, model 2": ("gpt4-model-2-response.json", 64.98),
    "Llama 3, model 1": ("llama3-8b-model-1-response.json", 77.05),
    "Llama 3, model 2": ("llama3-8b-model-2-response.json", 67.37),
}
ANSWERS = "instruction-data-with-response.json"


def published(folder: Path) -> dict[str, Any]:
    """The published scores and answers with intervals."""
    from instruct_lit.evaluation.metrics import score
    from instruct_lit.evaluation.statistics import difference, interval

    scores = {name: np.array(json.loads((folder / file).read_text()), float) for name, (file, _) in SCORES.items()}
    rows = [
        {"scores": name, "published": SCORES[name][1], **interval(values.tolist())} for name, values in scores.items()
    ]
    records = json.loads((folder / ANSWERS).read_text())
    answers = [{**r, "response": r["model_response"].strip(), "finish_reason": "stop"} for r in records]
    spread = float(scores["Llama 3, model 1"].std(ddof=1))
    return {
        "scores": rows,
        "GPT-4, model 1 - model 2": difference(scores["GPT-4, model 1"] - scores["GPT-4, model 2"]),
        "answers": score(answers, ["exact_match", "token_f1", "empty"]),
        "noise": {"n": len(answers), "standard_deviation": spread, **noise(spread, len(answers))},
    }


def noise(spread: float, n: int) -> dict[str, float]:
    """Half the 95 % interval of a mean of n scores, and of the difference of two such means."""
    half = 1.96 * spread / math.sqrt(n)
    return {"of_a_mean": half, "of_a_difference": half * math.sqrt(2)}


def train(recipe: str, seed: int, folder: Path, overrides: Sequence[str], judge: Sequence[str]) -> dict[str, float]:
    """Train a recipe with a seed and score its answers; a finished run is not trained again."""
    run = folder / f"{recipe.replace(' ', '-')}-{seed}"
    if not (run / "metrics.json").exists():
        own = [f"seed={seed}", f"data.seed={seed}", f"hydra.run.dir={run}"]
        command("train", "experiment=book_gpt2_medium", *RECIPES[recipe][0], *own, *overrides)
    metrics = json.loads((run / "metrics.json").read_text())
    steps = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    last = {name: [s[name] for s in steps if s.get(name) is not None][-1] for name in ("train/loss", "val/loss")}
    found = {
        "before, validation": metrics["base/val/loss"],
        "at the end, training": last["train/loss"],
        "at the end, validation": last["val/loss"],
        "test loss": metrics["test/loss"],
    }
    if judge:
        out = run / "judged"
        if not (out / "evaluation.json").exists():
            command("evaluate", f"responses={run / 'responses.jsonl'}", *judge, f"hydra.run.dir={out}")
        found["judge"] = json.loads((out / "evaluation.json").read_text())["judge"]["score"]["mean"]
    return found


def command(name: str, *overrides: str) -> None:
    subprocess.run([sys.executable, "-m", f"instruct_lit.{name}", *overrides], check=True)


def over_seeds(values: Sequence[float]) -> str:
    """Mean and 95 % interval."""
    from instruct_lit.sweeps.statistics import mean_and_interval

    found = mean_and_interval(list(values))
    bounds = "one seed" if found["low"] is None else f"{found['low']:.3f} to {found['high']:.3f}"
    return f"{found['mean']:.3f} ({bounds})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, default=None, help="folder of the published scores and answers")
    parser.add_argument("--seeds", default="", help="train with these seeds: 1,2,3")
    parser.add_argument("--recipe", choices=[*RECIPES], action="append", help="by default all")
    parser.add_argument("--set", action="append", default=[], help="an override of every training run")
    parser.add_argument("--judge", action="append", default=[], help="an override of evaluate, such as judge=ollama")
    parser.add_argument("--runs", type=Path, default=Path("outputs/book"), help="where the runs are kept")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    result: dict[str, Any] = {}
    if args.published is not None:
        result["published"] = found = published(args.published)
        print("| published scores | published | from the file | 95 % interval | n |\n|---|---|---|---|---|")
        for row in found["scores"]:
            print(
                f"| {row['scores']} | {row['published']} | {row['mean']:.2f} | {row['low']:.1f} to {row['high']:.1f} | {row['n']} |"
            )
        change, of_a = found["GPT-4, model 1 - model 2"], found["noise"]
        print(
            f"GPT-4, model 1 - model 2: {change['mean']:.2f} ({change['low']:.1f} to {change['high']:.1f}), p = {change['p']:.4f}"
        )
        for name, value in found["answers"].items():
            print(f"the 110 published answers, {name}: {value['mean']:.3f} ({value['low']:.3f} to {value['high']:.3f})")
        print(
            f"noise: scores have a standard deviation of {of_a['standard_deviation']:.1f}, so a mean of {of_a['n']} is known to ± "
            f"{of_a['of_a_mean']:.1f} and a difference of two to ± {of_a['of_a_difference']:.1f}"
        )
        for recipe, (_, value) in RECIPES.items():
            if (by := value - RECIPES["as in the book"][1]) == 0:
                continue
            print(
                f"  {recipe}: {value} ({by:+.2f}): {'noise' if abs(by) < of_a['of_a_difference'] else 'more than noise'}"
            )
    seeds = [int(seed) for seed in args.seeds.split(",") if seed]
    rows = []
    for recipe in (args.recipe or [*RECIPES]) if seeds else []:
        runs = [train(recipe, seed, args.runs.resolve(), args.set, args.judge) for seed in seeds]
        for name in runs[0]:
            theirs = RECIPES[recipe][1] if name == "judge" else LOSSES.get(name) if recipe == "as in the book" else None
            rows.append({"recipe": recipe, "figure": name, "published": theirs, "seeds": [run[name] for run in runs]})
            print(f"| {recipe} | {name} | {theirs or ''} | {over_seeds(rows[-1]['seeds'])} |", flush=True)
    common.write_json(args.json, {**result, "runs": rows})


if __name__ == "__main__":
    main()
