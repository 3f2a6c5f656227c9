"""What templates may do: text is sandboxed and unescaped, HTML is escaped; the limits plug in."""

import jinja2
import pytest

from instruct_lit.core import jinja_environments
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.jinja_environments import compile_text
from instruct_lit.errors import TemplateError


@pytest.fixture(params=["with limits", "core alone"])
def limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "core alone":
        monkeypatch.setattr(jinja_environments, "LIMITED", [])


@pytest.mark.usefixtures("limits")
def test_text_is_unescaped_and_keeps_its_last_line_break() -> None:
    assert compile_text("{% if true %}\n{{ x }}\n{% endif %}\n").render(x="<b>") == "<b>\n"


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize("text", ["{{ x.append(1) }}", "{{ x.__class__.__mro__ }}", "{{ y }}"])
def test_text_templates_change_nothing_reach_no_internals_and_misspell_no_variable(text: str) -> None:
    with pytest.raises(jinja2.TemplateError):
        compile_text(text).render(x=[])


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{{ "{x}".format() }}', "KeyError: 'x'"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "it calls itself too often"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply (RecursionError)"),
        ("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "nested too deeply (SyntaxError)"),
    ],
)
def test_whatever_fails_in_a_template_is_a_message(text: str, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Template("mine", text + "{{ response }}")
    assert message in str(caught.value)


@pytest.mark.usefixtures("limits")
def test_a_loop_is_a_loop() -> None:
    text = "{% for word in instruction.split() %}{{ loop.index }}{{ word }}{% endfor %}{{ response }}"
    assert Template("mine", text).prompt(Example("a b", "o")) == "1a2b"
