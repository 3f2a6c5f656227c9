"""python -m instruct_lit.evaluate: generate or read responses, score them, judge them, compare two models."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_lit.config.check_commands import check_command, forget_secrets
from instruct_lit.config.compose import run_command
from instruct_lit.config.judge_builders import response_judge_of

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from instruct_lit.evaluation.judging.response_judge import ResponseJudge


def evaluate(config: DictConfig) -> float:
    """Score the responses of a model or a file, or compare two; return the first metric's mean, or A's win rate."""
    from hydra.core.hydra_config import HydraConfig

    out_dir = Path(HydraConfig.get().runtime.output_dir)
    if config.judge is not None:
        forget_secrets(out_dir, config.judge.url, config.judge.api_key_env)
    check_command("evaluate", config)

    from instruct_lit.evaluation.metrics import check_metrics

    check_metrics(config.metrics)
    result = (score if config.compare is None else compare)(config, out_dir, response_judge_of(config))
    print(f"{out_dir}: responses.jsonl, evaluation.json, report.html")
    return result


def score(config: DictConfig, out_dir: Path, judge: ResponseJudge | None) -> float:
    """Score responses; the metrics are written before a judge is asked, so that its failure loses nothing."""
    from omegaconf import OmegaConf

    from instruct_lit.config.response_builders import responses_of
    from instruct_lit.evaluation.judging.judge import require_judged
    from instruct_lit.evaluation.people import people, read_labels
    from instruct_lit.evaluation.scores import score_rows
    from instruct_lit.reports.evaluation_page import print_judge, print_leaks, print_people, print_scores, write_page

    responses = responses_of(config, config.run or config.responses)
    labels = read_labels(Path(config.reviews), [row["id"] for row in responses.rows]) if config.reviews else None
    rows, training = responses.rows, responses.training if config.leaks.enabled else None
    found: dict[str, Any] = {
        "run": config.run, "responses": config.responses, "split": config.split, "n_responses": len(rows),
        "generation": OmegaConf.to_container(config.generation), "changes": responses.changes,
        **score_rows(rows, config.metrics, config.by, config.seed, training, config.leaks.near),
    }  # fmt: skip
    write(out_dir, found, rows, write_page)
    print_leaks(found["leaks"])
    print_scores(found)
    if judge is not None:
        found["judge"] = judge.score(rows, config.seed)
        write(out_dir, found, rows, write_page)
        print_judge(found["judge"])
        require_judged(found["judge"])
    if labels is not None:
        found["people"] = people(rows, labels, config.seed)
        write(out_dir, found, rows, write_page)
        print_people(found["people"])
    return next(iter(found["metrics"].values()))["mean"]


def compare(config: DictConfig, out_dir: Path, judge: ResponseJudge | None) -> float:
    """Compare two models' responses to the same examples; return the first one's win rate, or lead in the metric."""
    from instruct_lit.config.response_builders import responses_of
    from instruct_lit.evaluation.comparison import compare_rows
    from instruct_lit.evaluation.judging.judge import require_judged
    from instruct_lit.reports.evaluation_page import print_comparison, write_comparison

    a, b = (responses_of(config, side).rows for side in config.compare)
    pairs, numbers = compare_rows(a, b, config.metrics, config.seed)
    found: dict[str, Any] = {"compare": list(config.compare), **numbers}
    rows = [{**row, "response_b": other["response"]} for row, other in pairs]
    write(out_dir, found, rows, write_comparison)
    if judge is not None:
        found["pairwise"] = judge.compare(pairs, rows, config.seed)
        write(out_dir, found, rows, write_comparison)
    print_comparison(found)
    if judge is not None:
        require_judged(found["pairwise"])
        return found["pairwise"]["win_rate"]["mean"]
    return next(iter(found["differences"].values()))["mean"]


def write(out_dir: Path, found: dict[str, Any], rows: Sequence[dict[str, Any]], page: Callable[..., None]) -> None:
    """Write the rows, the figures and the page."""
    from instruct_lit.core.generation.responses import write_jsonl

    write_jsonl(out_dir / "responses.jsonl", rows)
    (out_dir / "evaluation.json").write_text(json.dumps(found, indent=2) + "\n")
    page(out_dir / "report.html", found, rows)


def main() -> None:
    """Entry point of the command."""
    run_command("evaluate", evaluate)


if __name__ == "__main__":
    main()
