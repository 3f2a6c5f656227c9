"""What templates may do: text is sandboxed and unescaped, HTML is escaped."""

from pathlib import Path

import jinja2
import pytest

from instruct_lit.core.jinja_environments import html_environment, text_environment


def test_text_is_unescaped_and_keeps_its_last_line_break() -> None:
    text = "{% if true %}\n{{ x }}\n{% endif %}\n"
    assert text_environment().from_string(text).render(x="<b>") == "<b>\n"


@pytest.mark.parametrize("text", ["{{ x.append(1) }}", "{{ x.__class__.__mro__ }}", "{{ y }}"])
def test_text_templates_change_nothing_reach_no_internals_and_misspell_no_variable(text: str) -> None:
    with pytest.raises(jinja2.TemplateError):
        text_environment().from_string(text).render(x=[])


def test_html_is_escaped_and_loads_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "page.html.jinja").write_text("<p>{{ x }}</p>")
    assert html_environment(tmp_path).get_template("page.html.jinja").render(x="<b>") == "<p>&lt;b&gt;</p>"
