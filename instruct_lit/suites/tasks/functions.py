"""Functions of the task files in this folder: texts, targets and metrics of single items."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from instruct_lit.evaluation.metrics import Row, exact_match_normalised, normalised, overlap
from instruct_lit.optional_imports import load
from instruct_lit.suites.execution import passes

Doc = Mapping[str, Any]
LogLikelihoods = Sequence[tuple[float, bool]]


def best_of(metric: Any, answer: str, references: Sequence[str]) -> float:
    """The highest value of a metric of a response over its references."""
    return max(metric({"response": answer, "output": reference}) for reference in references)


def squad_f1(row: Row) -> float:
    """F1 of SQuAD's script, which takes words from white space to white space in every script."""
    return overlap(normalised(row["response"]).split(), normalised(row["output"]).split())


def squad(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Exact match and F1 against the best reference; a question without one is to be left unanswered."""
    references = doc["answers"]["text"] or [""]
    return {
        "exact_match": best_of(exact_match_normalised, results[0], references),
        "f1": best_of(squad_f1, results[0], references),
    }


def humaneval(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """1 where the generated function passes the problem's tests."""
    return {"pass@1": float(passes(doc, results[0]))}


def stsb_target(doc: Doc) -> int:
    """The choice nearest to the human score."""
    return round(doc["label"])


def stsb(doc: Doc, results: LogLikelihoods) -> dict[str, tuple[float, float]]:
    """The human score and the model's: the expectation over the choices."""
    top = max(score for score, _ in results)
    weights = [math.exp(score - top) for score, _ in results]
    expected = sum(i * w for i, w in enumerate(weights)) / sum(weights)
    return {"pearson": (doc["label"], expected), "spearman": (doc["label"], expected)}


def _correlation(name: str, pairs: Sequence[tuple[float, float]]) -> float:
    """Correlation by a function of scipy; 0 where one side is constant."""
    stats = load("scipy.stats", "suite=glue", "benchmark")
    targets, values = zip(*pairs, strict=True)
    if min(targets) == max(targets) or min(values) == max(values):
        return 0.0
    return float(getattr(stats, name)(targets, values).statistic)


pearson, spearman = partial(_correlation, "pearsonr"), partial(_correlation, "spearmanr")  # of the values, of the ranks


def record_items(data: Any) -> Any:
    """Distinct entities and answers in a fixed order."""
    return data.map(
        lambda doc: {
            "passage": doc["passage"],
            "query": doc["query"],
            "entities": sorted(set(doc["entities"])),
            "answers": sorted(set(doc["answers"])),
        }
    )


def record_text(doc: Doc) -> str:
    """The passage with its highlights as a list."""
    text, *highlights = doc["passage"].strip().split("\n@highlight\n")
    return f"{text}\n\n" + "".join(f"  - {highlight}.\n" for highlight in highlights)


def record_choices(doc: Doc) -> list[str]:
    """The query with each entity in place of its placeholder."""
    return [f"  - {doc['query']}".replace("@placeholder", entity) for entity in doc["entities"]]


def record_target(doc: Doc) -> str:
    """The query with the first correct entity."""
    return f"  - {doc['query']}".replace("@placeholder", doc["answers"][0])


def record(doc: Doc, results: LogLikelihoods) -> dict[str, float]:
    """F1 and exact match of the likeliest entity against the correct ones."""
    best = max(range(len(results)), key=lambda i: results[i][0])
    entity, answers = doc["entities"][best], doc["answers"]
    return {"f1": best_of(squad_f1, entity, answers), "em": best_of(exact_match_normalised, entity, answers)}
