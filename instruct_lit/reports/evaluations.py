"""Evaluations step by step: their files are written before a judge is asked, so that its failure loses nothing."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instruct_lit.core.generation.responses import write_jsonl
from instruct_lit.evaluation.comparison import compare_models, compare_rows, match_rows
from instruct_lit.evaluation.judging.judge import require_judged
from instruct_lit.evaluation.judging.response_judge import ResponseJudge
from instruct_lit.evaluation.metrics import comparable
from instruct_lit.evaluation.people import Labels, people
from instruct_lit.evaluation.scores import add_scores
from instruct_lit.reports import evaluation_page as page

Found = dict[str, Any]  # the content of evaluation.json
Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Evaluation:
    """An evaluation in a folder, by metrics and where given by a judge."""

    out_dir: Path
    metrics: Sequence[str]
    judge: ResponseJudge | None = None
    seed: int = 0

    def score(self, found: Found, rows: Rows, labels: Labels | None = None, n_audit: int | None = None) -> float:
        """Report one model's scores (`score_rows`), the judge's, and those in people's labels; the first metric's mean.

        `found` is extended; `n_audit` judged responses are drawn for people, to `audit.jsonl`.
        """
        self._write(found, rows, page.write_page)
        page.print_leaks(found["leaks"])
        page.print_scores(found)
        if self.judge is not None:
            found["judge"] = self.judge.score(rows, self.seed)
            self._write(found, rows, page.write_page)
            page.print_judge(found["judge"])
            if n_audit is not None:
                drawn = random.Random(self.seed).sample(range(len(rows)), min(n_audit, len(rows)))
                write_jsonl(self.out_dir / "audit.jsonl", [rows[number] for number in sorted(drawn)])
                print(f"for people: python -m instruct_lit.review run={self.out_dir / 'audit.jsonl'}")
            require_judged(found["judge"])
        if labels is not None:
            found["people"] = people(rows, labels, self.seed)
            for row in rows:
                row["people"] = labels.get(row["id"], {})
            self._write(found, rows, page.write_page)
            page.print_people(found["people"])
        return next(iter(found["metrics"].values()))["mean"]

    def rank(self, models: Mapping[str, str], sides: Sequence[Rows]) -> tuple[float, Found]:
        """Compare the responses of several models, given by labels; the first one's mean in the first metric.

        A judge scores every response, and its scores are a metric among the others.
        """
        matched = match_rows(*sides)
        rows = [{**row, "model": label} for of_all in matched for label, row in zip(models, of_all, strict=True)]
        names = comparable(self.metrics, matched)
        add_scores(rows, names)
        found: Found = {"models": dict(models), "n_examples": len(matched)}
        found["n_unpaired"] = sum(map(len, sides)) - len(rows)
        self._write_ranks(found, rows, names)
        if self.judge is not None:
            found["judge"] = self.judge.score(rows, self.seed)
            for row in rows:
                value = row["judge"]["value"]
                row["scores"]["judge"] = self.judge.scale[0] if value is None else value
            self._write_ranks(found, rows, [*names, "judge"])
        page.print_ranking(found)
        if self.judge is not None:
            require_judged(found["judge"])
        return next(iter(found["comparison"][names[0]]["models"].values()))["mean"], found

    def _write_ranks(self, found: Found, rows: Rows, metrics: Sequence[str]) -> None:
        labels = list(found["models"])
        by_example = [tuple(rows[i : i + len(labels)]) for i in range(0, len(rows), len(labels))]
        found["comparison"] = compare_models(labels, by_example, metrics, self.seed)
        self._write(found, rows, page.write_ranking)

    def compare(self, sources: Sequence[str], sides: Sequence[Rows]) -> tuple[float, Found]:
        """Compare the responses of two models; the first one's win rate, or its lead in the first metric."""
        pairs, numbers = compare_rows(sides[0], sides[1], self.metrics, self.seed)
        found: Found = {"compare": sources, **numbers}
        rows = [{**row, "response_b": other["response"]} for row, other in pairs]
        self._write(found, rows, page.write_comparison)
        result = next(iter(found["differences"].values()))
        if self.judge is not None:
            found["pairwise"] = self.judge.compare(pairs, rows, self.seed)
            self._write(found, rows, page.write_comparison)
            result = found["pairwise"]["win_rate"]
        page.print_comparison(found)
        if self.judge is not None:
            require_judged(found["pairwise"])
        return result["mean"], found

    def _write(self, found: Found, rows: Rows, write_page: Callable[..., None]) -> None:
        write_jsonl(self.out_dir / "responses.jsonl", rows)
        (self.out_dir / "evaluation.json").write_text(json.dumps(found, indent=2) + "\n")
        write_page(self.out_dir / "report.html", found, rows)
