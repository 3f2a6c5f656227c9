"""python -m instruct_lit.evaluate: generate or read responses, score them, judge them, compare models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from instruct_lit.config.compose import output_dir, run_command

if TYPE_CHECKING:
    from instruct_lit.config.response_builders import Responses


def evaluate(config: DictConfig) -> float:
    """Score the responses of a model or a file, or compare several; return the first metric's mean, or A's win rate."""
    out_dir = output_dir()
    from instruct_lit.config.judge_builders import response_judge_of
    from instruct_lit.config.model_builders import labels_of
    from instruct_lit.config.response_builders import check_data, responses_of, sources_of
    from instruct_lit.evaluation.metrics import check_metrics
    from instruct_lit.evaluation.people import read_labels
    from instruct_lit.reports.evaluation_page import records_of
    from instruct_lit.reports.evaluations import Evaluation
    from instruct_lit.reports.tables import print_records, table_alone

    check_metrics(config.metrics)
    sources = sources_of(config)
    check_data(config, sources)
    is_pair = config.compare is not None and len(sources) == 2
    with table_alone(config.format):
        evaluation = Evaluation(out_dir, config.metrics, response_judge_of(config, is_pair), config.seed)
        models = dict(zip(labels_of(sources), sources, strict=True)) if len(sources) > 1 and not is_pair else {}
        sides = [responses_of(config, source) for source in sources]
        if models:
            result, found = evaluation.rank(models, [side.rows for side in sides])
        elif is_pair:
            result, found = evaluation.compare(sources, [side.rows for side in sides])
        else:
            rows, n_audit = sides[0].rows, config.judge and config.judge.audit
            labels = read_labels(Path(config.reviews), rows) if config.reviews else None
            found = scored(config, sources[0], sides[0])
            result = evaluation.score(found, rows, labels, n_audit)
        print(f"{out_dir}: responses.jsonl, evaluation.json, report.html")
    print_records(records_of(found), config.format)
    return result


def scored(config: DictConfig, source: str, responses: Responses) -> dict[str, Any]:
    """The scores of one model's responses, and what they are."""
    from instruct_lit.evaluation.scores import score_rows

    training = responses.training if config.leaks.enabled else None
    return {
        "run": None if source == config.responses else source, "responses": config.responses,
        "split": config.split, "n_responses": len(responses.rows),
        "generation": OmegaConf.to_container(config.generation), "changes": responses.changes,
        **score_rows(responses.rows, config.metrics, config.by, config.seed, training, config.leaks.near),
    }  # fmt: skip


if __name__ == "__main__":
    run_command("evaluate", evaluate)
