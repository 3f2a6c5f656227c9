"""Ollama's Modelfile, with which Ollama renders conversations as our template does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import EOT
from instruct_lit.errors import TemplateError

_INSTRUCTION, _SYSTEM, _ANSWER = "⟦instruction⟧", "⟦system⟧", "⟦answer⟧"  # placeholders in a rendered template


def modelfile(
    weights: str,
    template: Template,
    generation: Mapping[str, Any],
    context_length: int,
    end: str = EOT,
    start: str = "",
) -> str:
    """Return an Ollama Modelfile for the GGUF file `weights`: our template, stop texts and generation settings.

    Args:
        end: the token that closes a response.
        start: what llama.cpp puts before a text, and the template therefore need not.

    Raises:
        TemplateError: the template does more with the instruction than to insert it, which Ollama's template language
            cannot express; or a Modelfile cannot contain a stop text.
    """
    ends = [mark for later in _turns(template) if (mark := _suffix(template, later).strip())]
    ends += [end] if end != EOT else []
    parameters = {
        "num_ctx": context_length,
        "num_predict": generation.get("max_new_tokens", 256),
        "temperature": generation.get("temperature", 0.0),
        # Ollama truncates and penalises by default.
        "top_k": generation.get("top_k") or 0,
        "top_p": generation.get("top_p") or 1.0,
        "repeat_penalty": generation.get("repetition_penalty", 1.0),
    }
    lines = [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in dict.fromkeys([*generation.get("stop", ()), *ends])]
    return "\n".join([f"FROM ./{weights}", f'TEMPLATE """{_conversation(template, end, start)}"""', *lines, ""])


def _conversation(template: Template, end: str, start: str) -> str:
    """The template in Go's text/template over `.Messages`, as `chat_template_export.chat_template` in Jinja.

    Nothing follows a last answer, which is continued. A template of single turns renders the last question alone.
    """
    first = _prompt(template, "", start=start)
    if template.has_system:
        first = f"{{{{ if $.System }}}}{_prompt(template, _SYSTEM, start=start)}{{{{ else }}}}{first}{{{{ end }}}}"
    answer = "{{ .Content }}"
    if not template.has_turns:
        return (
            '{{ $n := 0 }}{{ range $i, $_ := .Messages }}{{ if eq .Role "user" }}{{ $n = $i }}{{ end }}{{ end }}'
            f'{{{{ range slice .Messages $n }}}}{{{{ if eq .Role "user" }}}}{first}'
            f'{{{{ else if eq .Role "assistant" }}}}{answer}{{{{ end }}}}{{{{ end }}}}'
        )
    user = _either(first, _prompt(template, "", later=True))
    closing = _either(*(_literal(_suffix(template, later)) for later in (False, True)))
    return (
        "{{ $first := true }}{{ range $i, $_ := .Messages }}"
        f'{{{{ if eq .Role "user" }}}}{user}'
        f'{{{{ else if eq .Role "assistant" }}}}{answer}'
        f"{{{{ if gt (len (slice $.Messages $i)) 1 }}}}{closing}{_literal(end)}{{{{ end }}}}{{{{ $first = false }}}}"
        "{{ end }}{{ end }}"
    )


def _either(first: str, later: str) -> str:
    return first if first == later else f"{{{{ if $first }}}}{first}{{{{ else }}}}{later}{{{{ end }}}}"


def _turns(template: Template) -> tuple[bool, ...]:
    """Of each form of a turn, whether it is a later one."""
    return (False, True) if template.has_turns else (False,)


def _turn(template: Template, instruction: str, system: str, later: bool) -> tuple[str, str]:
    """The text before and after the answer."""
    history = (("question", "answer"),) if later else ()
    prompt, response = template.turns(Example(instruction, _ANSWER, system=system, history=history))[-1]
    return prompt, response.removeprefix(_ANSWER)


def _prompt(template: Template, system: str, later: bool = False, start: str = "") -> str:
    instruction, other = " Which { words }?\n", " As { told }.\n" if system else ""
    text, _ = _turn(template, _INSTRUCTION, system, later)
    inserted = text.replace(_INSTRUCTION, instruction).replace(_SYSTEM, other)
    if not (_INSTRUCTION in text and system in text and inserted == _turn(template, instruction, other, later)[0]):
        raise TemplateError(
            f"template {template.name!r}: a Modelfile supports only prompts that are the instruction in fixed text; "
            "export with to=hf, whose chat template is our Jinja text"
        )
    text = _literal(text.removeprefix(start))
    return text.replace(_INSTRUCTION, "{{ .Content }}").replace(_SYSTEM, "{{ $.System }}")


def _suffix(template: Template, later: bool = False) -> str:
    _, text = _turn(template, _INSTRUCTION, "", later)
    if text != _turn(template, "another", "", later)[1]:
        raise TemplateError(
            f"template {template.name!r}: its suffix depends on the instruction, which no Modelfile supports; use to=hf"
        )
    return text


def _literal(text: str) -> str:
    """Text that Ollama's parser and Go's template language leave unchanged."""
    if '"""' in text:
        raise TemplateError(f'template: """ in {text!r:.100} ends a text in a Modelfile; remove it or use to=hf')
    preserved = (c if _is_preserved(c) else f'{{{{ "\\U{ord(c):08x}" }}}}' for c in text.replace("{{", '{{ "{{" }}'))
    return "".join(preserved)


def _quoted(stop: str) -> str:
    """A value in a Modelfile, which has no escapes."""
    if '"""' in stop or not all(map(_is_preserved, stop)):
        raise TemplateError(f"generation.stop: a Modelfile cannot contain {stop!r}; choose another, or use to=hf")
    return f'"""{stop}"""' if '"' in stop else f'"{stop}"'


def _is_preserved(character: str) -> bool:
    """Whether Ollama's parser keeps a character."""
    return character.isprintable() or character in "\n\t\r"
