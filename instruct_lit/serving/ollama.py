"""The Modelfile that lets Ollama render our prompt around what a person types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from instruct_lit.data.example import Example
from instruct_lit.data.template import Template
from instruct_lit.errors import TemplateError

_MARK = "\ue000instruction\ue000"  # private characters, which no template writes itself


def modelfile(weights: str, template: Template, generation: Mapping[str, Any], context_length: int) -> str:
    """An Ollama Modelfile for the GGUF file `weights`: our template, end marks and settings of generation.

    Raises TemplateError for a template that does more with the instruction than to write it down, since Ollama's own
    language cannot say it.
    """
    example = Example(_MARK, "")
    before, behind = template.prompt(example), template.suffix(example)
    other = Example("Which { words }?", "")
    plain = _MARK in before and before.replace(_MARK, other.instruction) == template.prompt(other)
    if not plain or template.suffix(other) != behind:
        raise TemplateError(
            f"template {template.name!r}: its prompt is not the instruction with text around it, all that a Modelfile "
            "can say; export with to=hf, whose chat template is our Jinja itself"
        )
    prompt = "{{ .Prompt }}".join(_literal(part) for part in before.split(_MARK))
    stops = [*generation.get("stop", ()), *filter(None, [behind.strip()])]
    parameters = {
        "num_ctx": context_length,
        "num_predict": generation.get("max_new_tokens", 256),
        "temperature": generation.get("temperature", 0.0),
        # Ollama cuts and penalises unless told otherwise.
        "top_k": generation.get("top_k") or 0,
        "top_p": generation.get("top_p") or 1.0,
        "repeat_penalty": generation.get("repetition_penalty", 1.0),
    }
    lines = [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    return "\n".join([f"FROM ./{weights}", f'TEMPLATE """{prompt}{{{{ .Response }}}}{_literal(behind)}"""', *lines, ""])


def _literal(text: str) -> str:
    """Text that Go's template language leaves as it is."""
    if '"""' in text:
        raise TemplateError(f'the template writes """, which ends a text in a Modelfile: {text!r:.100}')
    return text.replace("{{", '{{ "{{" }}')
