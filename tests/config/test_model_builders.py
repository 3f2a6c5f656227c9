"""What is built from a configuration: the template of a file."""

from pathlib import Path

import pytest

from instruct_lit.config.model_builders import template_of
from instruct_lit.errors import TemplateError
from tests.configs import composed


def test_a_template_file_is_read_or_refused_with_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(path: Path) -> str:
        return template_of(composed("train", "template=file", f"template.path='{path}'")).text

    with pytest.raises(
        TemplateError, match=r"template.path=.*nowhere.jinja: cannot be read .*\(No such file or directory\)"
    ):
        of(tmp_path / "nowhere.jinja")
    (tmp_path / "bytes.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TemplateError, match="cannot be read as UTF-8 text"):
        of(tmp_path / "bytes.jinja")
    (tmp_path / "mine.jinja").write_text("{{ instruction }}: {{ response }}")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert of(tmp_path / "mine.jinja") == of(Path("~/mine.jinja")) == "{{ instruction }}: {{ response }}"
