"""The model card: data, prompt, evaluation and limits of an exported model, with the hub's metadata."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from instruct_lit.core.bundle import OpenedModel
from instruct_lit.core.data.example import Example
from instruct_lit.core.jinja_environments import compile_text
from instruct_lit.evaluation.answer_files import read_jsonl
from instruct_lit.evaluation.metrics import WITHOUT_EXTRA, score
from instruct_lit.evaluation.statistics import Interval

_MEASURED = ("test/loss", "test/perplexity")
_NO_DATA = {"name": None, "fingerprint": None, "licence": None}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# A path from the root, a home folder or a drive; a URL has a colon and two slashes, a hub id no slash in front.
_LOCAL_PATH = re.compile(
    r"""(?<![\w:/.])(?:file://)?(?:~[\w.-]*/|/|[A-Za-z]:\\)(?:[^\s'",;(){}\[\]=]*[/\\])?([^\s'",;(){}\[\]=/\\]*)"""
)


@dataclass(frozen=True)
class CardFacts:
    """What a card says of a model beyond its bundle; None or empty: what the bundle has recorded."""

    name: str
    license: str | None = None
    base_model: str | None = None
    languages: Sequence[str] = ()
    relation: str = "finetune"  # to the base model, as the hub names it
    verified: Mapping[str, Any] = field(default_factory=dict)  # by `verification.verify_export`


def write_card(path: Path, facts: CardFacts, opened: OpenedModel, library: str) -> None:
    """Write the card of an exported model as Markdown with the front matter of the Hugging Face hub.

    Metrics with intervals are computed from the responses to the test split in the run folder, where there are any.

    Args:
        library: the library that opens what was exported, as the hub names it.
    """
    source, about = Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8"), opened.about
    metrics, data = about.get("metrics", {}), {**_NO_DATA, **about.get("data", {})}
    rows = read_jsonl(opened.directory.parent / "responses.jsonl")
    scores = score(rows, list(WITHOUT_EXTRA)) if rows else {}
    front = card_data(facts, about, scores, library)
    text = compile_text(source).render(
        name=facts.name,
        data={**data, "name": data["name"] and without_local_paths(data["name"])},
        base_model=front.base_model,
        command=about.get("command") and without_local_paths(about["command"]),
        version=about.get("version"),
        template=opened.template.name,
        prompt="".join(opened.template.turns(Example("{instruction}", "{response}"))[0]),
        metrics={key: (metrics[key], metrics.get(f"base/{key}")) for key in _MEASURED if key in metrics},
        scores=scores,
        context_length=opened.model.config.context_length,
        soup=about.get("soup"),
        readers=facts.verified.get("readers"),
        change=facts.verified.get("change"),
        n_verified=facts.verified.get("n"),
        n_parameters=f"{opened.model.n_parameters / 1e6:,.1f}",
    )
    path.write_text(f"---\n{front.to_yaml()}\n---\n\n{text.strip()}\n", encoding="utf-8")


def card_data(
    facts: CardFacts, about: Mapping[str, Any], scores: Mapping[str, Interval], library: str
) -> ModelCardData:
    """The metadata of the hub: whence the model comes and what was measured of it, never of its base."""
    base, data, metrics = about.get("base") or {}, {**_NO_DATA, **about.get("data", {})}, about.get("metrics", {})
    base_model = facts.base_model or base.get("id")
    name = without_local_paths(data["name"] or "unknown")

    def result(metric: str, value: float, arguments: dict[str, Any]) -> EvalResult:
        return EvalResult(
            task_type="text-generation", dataset_type=data.get("repo") or name, dataset_name=name, dataset_split="test",
            metric_type=metric, metric_value=round(value, 4), metric_args=arguments or None,
        )  # fmt: skip

    n = {"n": metrics["n_test"]} if metrics.get("n_test") else {}
    results = [result(key.removeprefix("test/"), metrics[key], n) for key in _MEASURED if key in metrics]
    change = {"loss_change": facts.verified["change"]} if "change" in facts.verified else {}
    for key, found in {**scores, **change}.items():
        bounds = [round(found[end], 4) for end in ("low", "high") if found[end] is not None]
        results.append(result(key, found["mean"], {"n": found["n"]} | ({"interval_95": bounds} if bounds else {})))
    return ModelCardData(
        license=facts.license or base.get("licence") or "unknown",
        base_model=base_model,
        base_model_relation=facts.relation if base_model else None,
        datasets=[data["repo"]] if _HUB_ID.fullmatch(data.get("repo") or "") else None,
        language=list(facts.languages) or None,
        library_name=library,
        pipeline_tag="text-generation",
        tags=["instruct-lit", "instruction-tuning", "conversational"],
        model_name=facts.name,
        eval_results=results or None,
    )


def without_local_paths(text: str) -> str:
    """A text with each path of this machine reduced to its last name, so that no user's name is published."""
    return _LOCAL_PATH.sub(lambda found: found[1] or "…", text)


def published(node: Any) -> Any:
    """The content of a bundle's own file without paths of this machine."""
    if isinstance(node, Mapping):
        return {key: value if key == "template" else published(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [published(value) for value in node]
    return without_local_paths(node) if isinstance(node, str) else node
