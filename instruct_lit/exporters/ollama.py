"""The Modelfile that lets Ollama render our prompts of what a person types, whole conversations too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import EOT
from instruct_lit.errors import TemplateError

_ASKED, _TOLD = "⟦asked⟧", "⟦told⟧"  # what stands in a rendering for the texts to come


def modelfile(weights: str, template: Template, generation: Mapping[str, Any], context_length: int) -> str:
    """An Ollama Modelfile for the GGUF file `weights`: our template, end marks and settings of generation.

    Raises TemplateError for a template that does more with the instruction than to write it down, since Ollama's own
    language cannot say it, and for an end mark that a Modelfile cannot hold.
    """
    forms = [template] if template.next_turn is None else [template, template.next_turn]
    ends = [mark for form in forms if (mark := _suffix(form).strip())]
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
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in dict.fromkeys([*generation.get("stop", ()), *ends])]
    return "\n".join([f"FROM ./{weights}", f'TEMPLATE """{_conversation(template)}"""', *lines, ""])


def _conversation(template: Template) -> str:
    """Go's text/template for `.Messages`: what `exported.chat_template` says in Jinja.

    An answer that comes last is to be continued: nothing stands behind it. Without a form for further turns the last
    question stands alone.
    """
    first = _prompt(template, "")
    if template.has_system:
        first = f"{{{{ if $.System }}}}{_prompt(template, _TOLD)}{{{{ else }}}}{first}{{{{ end }}}}"
    answer, later = "{{ .Content }}", template.next_turn
    if later is None:
        return (
            '{{ $n := 0 }}{{ range $i, $_ := .Messages }}{{ if eq .Role "user" }}{{ $n = $i }}{{ end }}{{ end }}'
            f'{{{{ range slice .Messages $n }}}}{{{{ if eq .Role "user" }}}}{first}'
            f'{{{{ else if eq .Role "assistant" }}}}{answer}{{{{ end }}}}{{{{ end }}}}'
        )
    asked = _either(first, _prompt(later, ""))
    end = _either(_literal(_suffix(template)), _literal(_suffix(later)))
    return (
        "{{ $first := true }}{{ range $i, $_ := .Messages }}"
        f'{{{{ if eq .Role "user" }}}}{asked}'
        f'{{{{ else if eq .Role "assistant" }}}}{answer}'
        f"{{{{ if gt (len (slice $.Messages $i)) 1 }}}}{end}{EOT}{{{{ end }}}}{{{{ $first = false }}}}"
        "{{ end }}{{ end }}"
    )


def _either(first: str, later: str) -> str:
    return first if first == later else f"{{{{ if $first }}}}{first}{{{{ else }}}}{later}{{{{ end }}}}"


def _prompt(form: Template, told: str) -> str:
    asked, other = " Which { words }?\n", " As { told }.\n" if told else ""
    text = form.prompt(Example(_ASKED, "", system=told))
    by_hand = text.replace(_ASKED, asked).replace(_TOLD, other)
    if not (_ASKED in text and told in text and by_hand == form.prompt(Example(asked, "", system=other))):
        raise TemplateError(
            f"template {form.name!r}: its prompt is not the instruction with text around it, all that a Modelfile "
            "can say; export with to=hf, whose chat template is our Jinja itself"
        )
    return _literal(text).replace(_ASKED, "{{ .Content }}").replace(_TOLD, "{{ $.System }}")


def _suffix(form: Template) -> str:
    text = form.suffix(Example(_ASKED, ""))
    if text != form.suffix(Example("another", "")):
        raise TemplateError(f"template {form.name!r}: what follows its response depends on the instruction")
    return text


def _literal(text: str) -> str:
    """Text that Ollama's parser and Go's template language leave as it is."""
    if '"""' in text:
        raise TemplateError(f'the template writes """, which ends a text in a Modelfile: {text!r:.100}')
    shown = (c if _kept(c) else f'{{{{ "\\U{ord(c):08x}" }}}}' for c in text.replace("{{", '{{ "{{" }}'))
    return "".join(shown)


def _quoted(stop: str) -> str:
    """A value of a Modelfile, which knows no escapes."""
    if '"""' in stop or not all(map(_kept, stop)):
        raise TemplateError(f"generation.stop: a Modelfile cannot hold {stop!r}; export with another stop, or to=hf")
    return f'"""{stop}"""' if '"' in stop else f'"{stop}"'


def _kept(character: str) -> bool:
    """Whether Ollama's parser does not drop it."""
    return character.isprintable() or character in "\n\t\r"
