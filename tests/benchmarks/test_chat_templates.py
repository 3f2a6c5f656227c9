"""The command that compares real chat templates, on a reduced one."""

from pathlib import Path

import pytest

pytest.importorskip("transformers")
TEMPLATE = """{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_outcomes_of_a_folder_of_templates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import chat_templates

    (tmp_path / "small.jinja").write_text(TEMPLATE)
    (tmp_path / "open.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    monkeypatch.setattr("sys.argv", ["chat_templates", str(tmp_path), "--json", str(tmp_path / "out.json")])
    chat_templates.main()
    out = capsys.readouterr().out
    assert "small: single: same; system: same; turns: same; thoughts: does not render the thoughts of an answer" in out
    assert "open: single: no end; system: no end" in out
    assert "single: {'same': 1, 'per turn': 0, 'no end': 1}, refused 0 of 2" in out
    _, learnt = chat_templates.outcome(TEMPLATE, chat_templates.KINDS["turns"], {})
    assert learnt == ["It is three.<|im_end|>"] * 2
