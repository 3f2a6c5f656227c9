"""The model card: data, prompt, evaluation and limits of an exported model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.jinja_environments import text_environment
from instruct_lit.evaluation.metrics import WITHOUT_EXTRA, score

_SHOWN = ("test/loss", "val/loss", "test/perplexity", "test/exact_match", "base/test/loss", "base/test/exact_match")
_NO_DATA = {"name": None, "fingerprint": None, "licence": None}


def write_card(
    path: Path,
    name: str,
    template: Template,
    about: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    context_length: int,
    n_parameters: int,
    library: str,
) -> None:
    """Write the card as Markdown with the front matter of the Hugging Face hub.

    Args:
        about: the content of the bundle's own file; empty if there is none.
        rows: the responses to the test split, from which metrics with intervals are computed; may be empty.
        library: the library that opens the model, as the hub names it.
    """
    source = Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8")
    metrics = about.get("metrics", {})
    scores = score(rows, list(WITHOUT_EXTRA)) if rows else {}
    text = (
        text_environment()
        .from_string(source)
        .render(
            name=name,
            library=library,
            data={**_NO_DATA, **about.get("data", {})},
            command=about.get("command"),
            version=about.get("version"),
            template=template.name,
            prompt="".join(template.turns(Example("{instruction}", "{response}"))[0]),
            metrics={key: metrics[key] for key in _SHOWN if key in metrics},
            scores=scores,
            context_length=context_length,
            n_parameters=f"{n_parameters / 1e6:,.1f}",
        )
    )
    path.write_text(text.rstrip() + "\n", encoding="utf-8")
