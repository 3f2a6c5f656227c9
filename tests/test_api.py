"""The public Python API: its names, that they are imported late, and the code of its page."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import instruct_lit
from instruct_lit import NANO, SamplingSettings, ask, open_model
from instruct_lit.errors import ConfigError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "python-api.md"


def test_the_code_of_the_page_runs() -> None:
    found = doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.REPORT_NDIFF)
    assert found.attempted >= 15 and found.failed == 0


def test_every_name_is_documented_and_imported_late() -> None:
    assert all(f"`{name}`" in PAGE.read_text() or f"{name}" in PAGE.read_text() for name in instruct_lit.__all__)
    assert set(instruct_lit.__all__) <= set(dir(instruct_lit)) and len(instruct_lit.__all__) == 10
    assert all(getattr(instruct_lit, name) is not None for name in instruct_lit.__all__)
    with pytest.raises(AttributeError, match="module 'instruct_lit' has no attribute 'nothing'"):
        instruct_lit.nothing  # noqa: B018
    program = "import sys, instruct_lit; sys.exit(bool({'torch', 'lightning', 'omegaconf'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


def test_one_instruction_is_one_text() -> None:
    with pytest.raises(TypeError, match="ask: one instruction, a text; for many at once see Engine.generate"):
        ask(open_model(NANO, "alpaca"), ["a", "b"])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"generation.stop=\nUser: must be a list of texts"):
        SamplingSettings(stop="\nUser")  # type: ignore[arg-type]


def test_a_template_by_its_name_or_as_text() -> None:
    assert open_model(NANO, "{{ instruction }} -> {{ response }}").template.name == "given"
    with pytest.raises(ConfigError, match=r"template=alpakka: no such template; allowed are alpaca, .*chatml"):
        open_model(NANO, "alpakka")
    with pytest.raises(
        ConfigError, match="template=file: has no text of its own; give a Jinja text with {{ response }}"
    ):
        open_model(NANO, "file")
    with pytest.raises(ConfigError, match="not a bundle of instruct-lit, so give a template"):
        open_model(NANO, "chat")  # which would be in the directory
