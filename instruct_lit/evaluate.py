"""python -m instruct_lit.evaluate: generate or read responses, score them, judge them, compare models."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from instruct_lit.config.compose import output_dir, run_command
from instruct_lit.config.judge_builders import response_judge_of

if TYPE_CHECKING:
    from instruct_lit.evaluation.judging.response_judge import ResponseJudge

Result = tuple[float, dict[str, Any]]  # what the command returns, and the content of evaluation.json


def evaluate(config: DictConfig) -> float:
    """Score the responses of a model or a file, or compare several; return the first metric's mean, or A's win rate."""
    out_dir = output_dir()
    from instruct_lit.config.response_builders import sources_of
    from instruct_lit.evaluation.metrics import check_metrics
    from instruct_lit.reports.evaluation_page import records_of
    from instruct_lit.reports.tables import print_records, table_alone

    check_metrics(config.metrics)
    sources = sources_of(config)
    command = score if len(sources) == 1 else compare if config.compare is not None and len(sources) == 2 else rank
    with table_alone(config.format):
        result, found = command(config, sources, out_dir, response_judge_of(config, pairwise=command is compare))
        print(f"{out_dir}: responses.jsonl, evaluation.json, report.html")
    print_records(records_of(found), config.format)
    return result


def score(config: DictConfig, sources: list[str], out_dir: Path, judge: ResponseJudge | None) -> Result:
    """Score responses; the metrics are written before a judge is asked, so that its failure loses nothing."""
    from omegaconf import OmegaConf

    from instruct_lit.config.response_builders import responses_of
    from instruct_lit.core.generation.responses import write_jsonl
    from instruct_lit.evaluation.judging.judge import require_judged
    from instruct_lit.evaluation.people import people, read_labels
    from instruct_lit.evaluation.scores import score_rows
    from instruct_lit.reports.evaluation_page import print_judge, print_leaks, print_people, print_scores, write_page

    responses = responses_of(config, sources[0])
    labels = read_labels(Path(config.reviews), responses.rows) if config.reviews else None
    rows, training = responses.rows, responses.training if config.leaks.enabled else None
    found: dict[str, Any] = {
        "run": None if sources[0] == config.responses else sources[0], "responses": config.responses,
        "split": config.split, "n_responses": len(rows),
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
        if config.judge.audit is not None:
            drawn = random.Random(config.seed).sample(range(len(rows)), min(config.judge.audit, len(rows)))
            write_jsonl(out_dir / "audit.jsonl", [rows[number] for number in sorted(drawn)])
            print(f"for people: python -m instruct_lit.review run={out_dir / 'audit.jsonl'}")
        require_judged(found["judge"])
    if labels is not None:
        found["people"] = people(rows, labels, config.seed)
        for row in rows:
            row["people"] = labels.get(row["id"], {})
        write(out_dir, found, rows, write_page)
        print_people(found["people"])
    return next(iter(found["metrics"].values()))["mean"], found


def rank(config: DictConfig, sources: list[str], out_dir: Path, judge: ResponseJudge | None) -> Result:
    """Compare the responses of several models to the same examples; return the first one's mean in the first metric.

    A judge scores every response, and its scores are a metric among the others.
    """
    from instruct_lit.config.model_builders import labels_of
    from instruct_lit.config.response_builders import responses_of
    from instruct_lit.errors import ConfigError
    from instruct_lit.evaluation.comparison import compare_models, match_rows
    from instruct_lit.evaluation.judging.judge import require_judged
    from instruct_lit.evaluation.metrics import applicable
    from instruct_lit.evaluation.scores import add_scores
    from instruct_lit.reports.evaluation_page import print_ranking, write_ranking

    labels = labels_of(sources)
    if len(set(labels)) < len(labels):
        raise ConfigError(f"{', '.join(labels)}: one model twice; give each once")
    sides = [responses_of(config, source).rows for source in sources]
    matched = match_rows(*sides)
    rows = [{**row, "model": label} for of_example in matched for label, row in zip(labels, of_example, strict=True)]
    names = applicable(config.metrics, rows)
    add_scores(rows, names)
    found: dict[str, Any] = {"models": dict(zip(labels, sources, strict=True)), "n_examples": len(matched)}

    def compared(metrics: Sequence[str]) -> None:
        by_example = [tuple(rows[i : i + len(labels)]) for i in range(0, len(rows), len(labels))]
        found["comparison"] = compare_models(labels, by_example, metrics, config.seed)
        write(out_dir, found, rows, write_ranking)

    compared(names)
    if judge is not None:
        found["judge"] = judge.score(rows, config.seed)
        for row in rows:
            row["scores"]["judge"] = config.judge.scale[0] if row["judge"]["value"] is None else row["judge"]["value"]
        compared([*names, "judge"])
    print_ranking(found)
    if judge is not None:
        require_judged(found["judge"])
    return found["comparison"][names[0]]["models"][labels[0]]["mean"], found


def compare(config: DictConfig, sources: list[str], out_dir: Path, judge: ResponseJudge | None) -> Result:
    """Compare two models' responses to the same examples; return the first one's win rate, or lead in the metric."""
    from instruct_lit.config.response_builders import responses_of
    from instruct_lit.evaluation.comparison import compare_rows
    from instruct_lit.evaluation.judging.judge import require_judged
    from instruct_lit.reports.evaluation_page import print_comparison, write_comparison

    a, b = (responses_of(config, side).rows for side in sources)
    pairs, numbers = compare_rows(a, b, config.metrics, config.seed)
    found: dict[str, Any] = {"compare": sources, **numbers}
    rows = [{**row, "response_b": other["response"]} for row, other in pairs]
    write(out_dir, found, rows, write_comparison)
    if judge is not None:
        found["pairwise"] = judge.compare(pairs, rows, config.seed)
        write(out_dir, found, rows, write_comparison)
    print_comparison(found)
    if judge is not None:
        require_judged(found["pairwise"])
        return found["pairwise"]["win_rate"]["mean"], found
    return next(iter(found["differences"].values()))["mean"], found


def write(out_dir: Path, found: dict[str, Any], rows: Sequence[dict[str, Any]], page: Callable[..., None]) -> None:
    """Write the rows, the figures and the page."""
    from instruct_lit.core.generation.responses import write_jsonl

    write_jsonl(out_dir / "responses.jsonl", rows)
    (out_dir / "evaluation.json").write_text(json.dumps(found, indent=2) + "\n")
    page(out_dir / "report.html", found, rows)


if __name__ == "__main__":
    run_command("evaluate", evaluate)
