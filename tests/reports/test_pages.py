"""The HTML layer: numbers as text, pages that are self-contained and do not scroll sideways."""

import re
from pathlib import Path

import pytest

from instruct_lit.reports import pages


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (True, "True"), (12345, "12,345"), (0.5, "0.5000"), (0.0, "0.0000"), (1e-5, "1e-05"), (118.49, "118.5"),
     (8718.4, "8,718"), (102028554434.0, "1.02e+11"), ("median", "median")],
)  # fmt: skip
def test_numbers_as_text(value: object, text: str) -> None:
    assert pages.number(value) == text


def test_a_small_p_value_is_given_as_a_bound() -> None:
    assert [pages.p_value(p) for p in (1.0, 0.0001, 0.00009)] == ["1.0000", "0.0001", "<0.0001"]


def test_a_page_has_the_common_layout_and_is_written_whole(tmp_path: Path) -> None:
    (tmp_path / "a.html.jinja").write_text(
        '{% extends "layout.html.jinja" %}{% block body %}{{ x | number }} {{ y }}{% endblock %}'
    )
    pages.write_page(tmp_path / "a.html", "a.html.jinja", tmp_path, x=0.25, y="<b>")
    page = (tmp_path / "a.html").read_text()
    assert "0.2500 &lt;b&gt;" in page and "prefers-color-scheme: dark" in page and "querySelectorAll" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.html.jinja"]


def test_what_cannot_be_written_whole_leaves_no_part(tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    with pytest.raises(OSError):  # noqa: PT011  # of several kinds, by system
        pages.write_whole(tmp_path / "page", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


@pytest.mark.parametrize(
    "template",
    sorted([*pages.FOLDER.glob("*.jinja"), *pages.FOLDER.parent.glob("sweeps/*.jinja")]),
    ids=lambda p: p.name,
)
def test_every_table_scrolls_in_its_own_box(template: Path) -> None:
    text = template.read_text()
    assert len(re.findall("<table", text)) == len(re.findall('<div class="scroll"><table', text))


def test_values_are_escaped_and_the_template_is_that_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "page.html.jinja").write_text("<p>{{ x }}</p>")
    pages.write_page(tmp_path / "page.html", "page.html.jinja", tmp_path, x="<b>")
    assert (tmp_path / "page.html").read_text() == "<p>&lt;b&gt;</p>"
