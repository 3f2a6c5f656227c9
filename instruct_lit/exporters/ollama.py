"""Ollama's Modelfile, with which Ollama renders conversations as our template does."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import CHAT, Template
from instruct_lit.core.data.tokenizer import EOT
from instruct_lit.core.jinja_environments import text_environment
from instruct_lit.errors import TemplateError

_INSTRUCTION, _SYSTEM, _ANSWER = "⟦instruction⟧", "⟦system⟧", "⟦answer⟧"  # placeholders in a rendered template
_TOOL = {"name": "⟦tool⟧"}
# Ollama writes tools and arguments as JSON without spaces.
_TOOLS = "{{ range $n, $tool := $.Tools }}{{ if $n }}\n{{ end }}{{ $tool }}{{ end }}"
_DELIMITERS: dict[str, Any] = {  # of Jinja in a text of Go's templates
    "variable_start_string": "<<", "variable_end_string": ">>", "block_start_string": "<%", "block_end_string": "%>",
    "comment_start_string": "<#", "comment_end_string": "#>",
}  # fmt: skip


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
    forms = (False, True) if template.has_turns else (False,)  # of a turn: whether it is a later one
    ends = [mark for later in forms if (mark := _suffix(template, later).strip())]
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
    """The template in Go's text/template over `.Messages`, as `chat_template_export.chat_template` in Jinja."""
    has_tools = template.has_tools and template.name != CHAT  # whose calls have a form of their own
    systems = ("", _SYSTEM) if _takes_system(template) else ("",)
    firsts = [
        [_prompt(template, system, start=start, tools=tools) for system in systems]
        for tools in ((False, True) if has_tools else (False,))
    ]
    later, suffixes = "", []
    if template.has_turns:
        later, suffixes = _prompt(template, "", later=True), [_suffix(template, later) for later in (False, True)]
    before, _, after = later.partition("{{ .Content }}")
    lines = Path(__file__).with_name("ollama.go.jinja").read_text(encoding="utf-8").splitlines()
    source = "".join(map(str.strip, lines)).replace("\\n", "\n")
    return text_environment().overlay(**_DELIMITERS).from_string(source).render(
        has_turns=template.has_turns, has_tools=has_tools, firsts=firsts, later=later, before=before, after=after,
        # The prompt behind a turn that the template rewrites closes it.
        closings=["" if _rewrites(template) else _literal(suffix if suffix.endswith(end) else suffix + end)
                  for suffix in suffixes],
    )  # fmt: skip


def _takes_system(template: Template) -> bool:
    """Whether a system prompt has a place; a model's own template may reject one."""
    with suppress(TemplateError):
        return template.has_system and bool(template.turns(Example("a", _ANSWER, system=_SYSTEM)))
    return False


def _rewrites(template: Template) -> bool:
    """Whether a model's own template renders an earlier turn otherwise than it was written (Qwen 3's)."""
    return template.has_turns and len(template.turns(Example("a", _ANSWER, history=(("question", "answer"),)))) == 1


def _turn(
    template: Template, instruction: str, system: str, later: bool, tools: tuple[dict[str, Any], ...] = ()
) -> tuple[str, str]:
    """The text before and after the answer."""
    history = (("question", "answer"),) if later else ()
    example = Example(instruction, _ANSWER, system=system, history=history, tools=tools)
    prompt, response = template.turns(example)[-1]
    if later and _rewrites(template):  # the prompt is the whole conversation
        earlier = template.turns(Example("question", _ANSWER))[0][0] + "answer"
        if not prompt.startswith(earlier):
            raise TemplateError(f"template {template.name!r}: a Modelfile supports no earlier answers that are changed")
        prompt = prompt.removeprefix(earlier)
    return prompt, response.partition(_ANSWER)[2]


def _prompt(template: Template, system: str, later: bool = False, start: str = "", tools: bool = False) -> str:
    instruction, other = " Which { words }?\n", " As { told }.\n" if system else ""
    given, tool = (_TOOL,) if tools else (), json.dumps(_TOOL, ensure_ascii=False)
    text, _ = _turn(template, _INSTRUCTION, system, later, given)
    inserted = text.replace(_INSTRUCTION, instruction).replace(_SYSTEM, other)
    wanted = _turn(template, instruction, other, later, given)[0]
    if not (_INSTRUCTION in text and system in text and inserted == wanted and (tool in text) == tools):
        raise TemplateError(
            f"template {template.name!r}: a Modelfile supports only prompts that are the instruction in fixed text; "
            "export with to=hf, whose chat template is our Jinja text"
        )
    text = _literal(text.removeprefix(start))
    return text.replace(_INSTRUCTION, "{{ .Content }}").replace(_SYSTEM, "{{ $.System }}").replace(tool, _TOOLS)


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
