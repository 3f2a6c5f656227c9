"""python -m instruct_lit.evaluate: let a finished model answer a data set, and score the answers.

Counting comes first and is written down before a judge is asked, so that nothing is lost when the judge fails.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_lit.config.compose import run_command
from instruct_lit.config.judge_builders import asked, check_judge, forget_secrets, judge_of, judge_prompt_of, judged
from instruct_lit.config.schema import EvaluateConfig, check_values, missing_runs
from instruct_lit.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from instruct_lit.evaluation.judging.judge import Judge


def check_evaluate(config: Any) -> None:
    """Raise one ConfigError that lists every impossible value of an evaluation's configuration."""
    problems = check_values(config)
    if sum(given is not None for given in (config.run, config.responses, config.compare)) != 1:
        problems.append(
            "run=…, responses=… or compare=[…,…]: give one of the three, a model to answer, answers that are there, or "
            "two of either to compare"
        )
    if not set(config.metrics) - {"ended"}:
        problems.append(f"metrics={list(config.metrics)}: name at least one besides ended")
    if config.responses is not None and not Path(config.responses).expanduser().is_file():
        problems.append(f"responses={config.responses}: no such file")
    if config.run is not None:
        problems += missing_runs(config.run)
    if config.compare is not None and len(config.compare) != 2:
        problems.append(f"compare={list(config.compare)}: give two, folders of models or files of answers")
    for side in config.compare or ():
        if not Path(side).expanduser().exists():
            problems.append(f"compare: {side}: no such folder or file")
    if config.leaks.train is not None and not Path(config.leaks.train).expanduser().is_file():
        problems.append(f"leaks.train={config.leaks.train}: no such file")
    if config.leaks.near and find_spec("datasketch") is None:
        problems.append("leaks.near=true: needs datasketch; pip install 'instruct-lit[filters]'")
    if config.judge is not None:
        problems += check_judge(config.judge, config.compare is not None)
    if problems:
        raise ConfigError("\n  ".join(problems))


def evaluate(config: DictConfig) -> float:
    """Answer a split of the data with the model at `run`, or take given answers; return the first metric's mean."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    out_dir = Path(HydraConfig.get().runtime.output_dir)
    if config.judge is not None:
        forget_secrets(out_dir, config.judge.url, config.judge.api_key_env)
    check_evaluate(config)

    from instruct_lit.core.generation.responses import write_jsonl
    from instruct_lit.core.optional_imports import load
    from instruct_lit.evaluation.categories import by_category, check_fields, losses
    from instruct_lit.evaluation.metrics import METRICS, applicable, check_metrics, score
    from instruct_lit.reports.evaluation_page import print_judge, print_leaks, print_scores, write_page

    check_metrics(config.metrics)
    if config.compare is not None:
        load("sklearn", "compare", "judge")
    judge = judge_of(config) if config.judge is not None and config.judge.name != "scores" else None
    if judge is not None:
        judge.check()
    if config.compare is not None:
        return compare(config, out_dir, judge)
    rows, training = rows_of(config, config.run or config.responses)
    check_fields(rows, config.by)
    metrics = applicable(config.metrics, rows)
    for row in rows:
        row["scores"] = {name: METRICS[name](row) for name in metrics}
    first = metrics[0]
    found: dict[str, Any] = {
        "run": config.run, "responses": config.responses, "split": config.split, "n_responses": len(rows),
        "generation": OmegaConf.to_container(config.generation), "metrics": score(rows, metrics, config.seed),
        "losses": losses(rows, config.seed), "leaks": leak_report(config, rows, training, metrics),
        "by": {field: by_category(rows, field, first, config.seed) for field in config.by},
    }  # fmt: skip

    def write() -> None:
        write_jsonl(out_dir / "responses.jsonl", rows)
        (out_dir / "evaluation.json").write_text(json.dumps(found, indent=2) + "\n")
        write_page(out_dir / "report.html", found, rows)

    write()
    print_leaks(found["leaks"])
    print_scores(found)
    if config.judge is not None:
        found["judge"] = judged(config, rows, judge)
        write()
        print_judge(found["judge"])
    print(f"{out_dir}: responses.jsonl, evaluation.json, report.html")
    return found["metrics"][first]["mean"]


def rows_of(config: DictConfig, source: str) -> tuple[list[dict[str, Any]], Iterator[str] | None]:
    """Answers out of a file or by the model in a folder, and its training texts where they are known."""
    from instruct_lit.evaluation.answer_files import read_responses
    from instruct_lit.evaluation.leaks import question

    training = None
    if Path(source).expanduser().is_dir():
        rows, training = answers_of_run(config, source)
    else:
        rows = read_responses(Path(source), config.response_field)[: config.n_responses]
    if config.leaks.train is not None:
        from instruct_lit.core.data.records import FileSource

        training = (question(example.as_record()) for example in FileSource(config.leaks.train))
    return rows, training


def answers_of_run(config: DictConfig, run: str) -> tuple[list[dict[str, Any]], Iterator[str] | None]:
    """Let a model answer the split, take its loss on the wanted responses; its training texts, where they are known."""
    from omegaconf import OmegaConf
    from tqdm import tqdm

    from instruct_lit.config import builders as build
    from instruct_lit.config.provenance import weights_sha256
    from instruct_lit.core.model.device import best_device
    from instruct_lit.evaluation.answer_cache import AnswerCache
    from instruct_lit.evaluation.leaks import training_questions
    from instruct_lit.evaluation.losses import response_losses

    of_this: Any = OmegaConf.merge(config, {"run": run})
    opened = build.open_run(of_this)
    data = build.data_of_run(of_this, opened)
    title = f"answers to the {config.split} set"
    # Every answer is written down as it comes: after an interruption the same command goes on from there.
    kept = AnswerCache(Path(config.paths.cache) / "answers" / f"{weights_sha256(opened.model)[:16]}.jsonl")
    opened.model.to(best_device())
    rows = build.answer_split(config, opened.model, data, config.split, config.n_responses, title, kept)
    store, _ = data.examples_of(config.split)
    with tqdm(total=len(rows), desc="loss of the wanted responses", unit="example", file=sys.stdout) as bar:
        losses = response_losses(opened.model, opened.tokenizer, [store[row["id"]] for row in rows], bar.update)
    for row, (loss, n_tokens) in zip(rows, losses, strict=True):
        row["loss"], row["n_response_tokens"] = loss, n_tokens
    return rows, None if config.split == "train" else training_questions(data)


def leak_report(
    config: DictConfig, rows: list[dict[str, Any]], training: Iterator[str] | None, metrics: Sequence[str]
) -> dict[str, Any] | None:
    """Which rows were in the training data, and the scores without them; rows get the kind as `leak`."""
    if not config.leaks.enabled or training is None:
        return None
    from instruct_lit.evaluation.leaks import find_leaks, question
    from instruct_lit.evaluation.metrics import score

    near = config.leaks.near if config.leaks.near is not None else find_spec("datasketch") is not None
    items = [question(row) for row in rows]
    leaks = find_leaks(training, items, near)
    for leak in leaks:
        rows[leak.item]["leak"] = leak.kind
    texts = [" ".join(items[leak.item].split())[:100] for leak in leaks]
    listed = [
        {**leak.as_record(), "id": rows[leak.item]["id"], "text": text} for leak, text in zip(leaks, texts, strict=True)
    ]
    clean = [row for row in rows if "leak" not in row]
    return {
        "near": near, "n": len(leaks), "n_rows": len(rows), "items": listed,
        "metrics_without": score(clean, metrics, config.seed) if clean else {},
    }  # fmt: skip


def compare(config: DictConfig, out_dir: Path, judge: Judge | None) -> float:
    """Put two models' answers to the same examples side by side; return the first one's win rate or advantage."""
    from instruct_lit.core.generation.responses import write_jsonl
    from instruct_lit.evaluation.comparison import Outcome, differences, outcome, pair_rows, questions_of, win_rate
    from instruct_lit.evaluation.metrics import applicable
    from instruct_lit.reports.evaluation_page import print_comparison, write_comparison

    rows_a, rows_b = (rows_of(config, side)[0] for side in config.compare)
    pairs = pair_rows(rows_a, rows_b)
    metrics = applicable(config.metrics, [*rows_a, *rows_b])
    found: dict[str, Any] = {
        "compare": list(config.compare), "n_pairs": len(pairs),
        "n_unpaired": len(rows_a) + len(rows_b) - 2 * len(pairs),
        "differences": differences(pairs, metrics, config.seed),
    }  # fmt: skip
    rows = [{**a, "response_b": b["response"]} for a, b in pairs]

    def write() -> None:
        write_jsonl(out_dir / "responses.jsonl", rows)
        (out_dir / "evaluation.json").write_text(json.dumps(found, indent=2) + "\n")
        write_comparison(out_dir / "report.html", found, rows)

    write()
    if judge is not None:
        prompt = judge_prompt_of(config.judge, pairwise=True)
        unlike = [pair for pair in pairs if pair[0]["response"] != pair[1]["response"]]
        verdicts = iter(asked(config, judge, prompt, [prompt.render(t) for pair in unlike for t in questions_of(pair)]))
        outcomes = []
        for pair, row in zip(pairs, rows, strict=True):
            both = (next(verdicts), next(verdicts)) if pair[0]["response"] != pair[1]["response"] else ()
            outcomes.append(outcome(*(judgement.value for judgement in both)) if both else Outcome("tie", "tie"))
            row["judge"] = {"share": outcomes[-1].share, "verdicts": [judgement.as_record() for judgement in both]}
        lengths = [(len(a["response"]), len(b["response"])) for a, b in pairs]
        found["pairwise"] = {"model": config.judge.model, **win_rate(outcomes, lengths, config.seed), **judge.usage()}
        write()
    print_comparison(found)
    print(f"{out_dir}: responses.jsonl, evaluation.json, report.html")
    return found["pairwise"]["win_rate"]["mean"] if judge is not None else found["differences"][metrics[0]]["mean"]


def main() -> None:
    """Entry point of the command."""
    run_command("evaluate", EvaluateConfig, evaluate)


if __name__ == "__main__":
    main()
