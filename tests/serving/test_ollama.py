"""Ollama's Modelfile: rendered as Ollama does, its template is ours."""

import re

import pytest
from omegaconf import OmegaConf

from instruct_lit.config import CONF
from instruct_lit.data.example import Example
from instruct_lit.data.template import Template
from instruct_lit.errors import TemplateError
from instruct_lit.serving.ollama import modelfile


def rendered(text: str, prompt: str, response: str) -> str:
    """What Go's text/template makes of the few forms that stand in our Modelfiles."""
    match = re.search(r'^TEMPLATE """(.*?)"""$', text, re.DOTALL | re.MULTILINE)
    assert match is not None
    values = {".Prompt": prompt, ".Response": response, '"{{"': "{{"}
    return re.sub(r"\{\{ (\.\w+|\"\{\{\") \}\}", lambda found: values[found.group(1)], match.group(1))


@pytest.mark.parametrize("name", ["alpaca", "alpaca_two_preambles", "phi3", "chatml", "plain"])
def test_the_rendered_template_is_ours(name: str) -> None:
    node = OmegaConf.load(CONF / "template" / f"{name}.yaml")
    template = Template(name, node.text)
    example = Example("Name a colour.\nOnly one.", "Red")
    if name == "plain":  # it has no prompt at all
        with pytest.raises(TemplateError, match="is not the instruction with text around it"):
            modelfile("m.gguf", template, {}, 64)
        return
    found = modelfile("m.gguf", template, {}, 64)
    assert rendered(found, example.instruction, example.output) == template.full_text(example)


def test_braces_of_the_template_stay_text() -> None:
    template = Template("braces", "{% raw %}{{ a }}{% endraw %} {{ instruction }}: {{ response }}")
    assert rendered(modelfile("m", template, {}, 64), "x", "y") == "{{ a }} x: y"


def test_settings_and_stops() -> None:
    template = Template("t", "{{ instruction }}\n{{ response }}<|end|>\n")
    settings = {"max_new_tokens": 7, "temperature": 0.5, "top_k": None, "top_p": 0.9, "repetition_penalty": 1.1}
    lines = modelfile("m-f16.gguf", template, {**settings, "stop": ['say "so"']}, 1024).splitlines()
    assert lines[0] == "FROM ./m-f16.gguf"
    assert lines[-8:] == [
        "PARAMETER num_ctx 1024", "PARAMETER num_predict 7", "PARAMETER temperature 0.5", "PARAMETER top_k 0",
        "PARAMETER top_p 0.9", "PARAMETER repeat_penalty 1.1", 'PARAMETER stop "say \\"so\\""',
        'PARAMETER stop "<|end|>"',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ instruction | upper }}: {{ response }}", "is not the instruction with text around it"),
        ('"""{{ instruction }} {{ response }}', 'writes """'),
    ],
)
def test_what_a_modelfile_cannot_say_is_refused(text: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        modelfile("m", Template("t", text), {}, 64)
