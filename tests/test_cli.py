"""The console script: its commands, its overview, and what the tab key completes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from instruct_lit import __version__, cli
from instruct_lit.config.completion import SHELLS, words
from instruct_lit.config.schema import COMMANDS


def test_the_overview_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n  {command} " in text for command in COMMANDS) and all(len(line) <= 80 for line in text.splitlines())
    cli.main(["--version"])
    assert capsys.readouterr().out == f"instruct-lit {__version__}\n"


@pytest.mark.parametrize(
    ("command", "hint"), [("trian", "did you mean train?"), ("xyz", "commands are train, evaluate, benchmark")]
)
def test_an_unknown_command_is_answered_with_the_nearest(
    command: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: instruct-lit {command}: no such command; {hint}")


def test_a_command_is_what_python_m_runs(tmp_path: Path) -> None:
    """The job's name decides the folder of a run, and `__main__` how processes for further devices are started."""
    arguments = ["train", "data.batch_size=5", "--cfg", "job", "--package", "data"]
    outputs = [
        subprocess.run([sys.executable, "-m", *start], capture_output=True, text=True, timeout=60, cwd=tmp_path).stdout
        for start in (["instruct_lit.cli", *arguments], ["instruct_lit.train", *arguments[1:]])
    ]
    assert outputs[0] == outputs[1] and "batch_size: 5" in outputs[0]


@pytest.mark.parametrize("is_checkout", [False, True])
def test_a_file_named_like_a_library_that_is_not_installed_is_not_found(tmp_path: Path, is_checkout: bool) -> None:
    """In a checkout, where the package itself is found in the current folder, it stays the last place."""
    where = tmp_path / "project"
    for name in ("typing", "h2"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the current folder')\n")
    where.mkdir()
    code = "import atexit, importlib.util as u; atexit.register(lambda: print(u.find_spec('h2') is not None))"
    (where / "sitecustomize.py").write_text(code)
    paths = [str(where)] if is_checkout else [str(where), str(Path(cli.__file__).parents[1])]
    if is_checkout:
        (tmp_path / "instruct_lit").symlink_to(Path(cli.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-m", "instruct_lit.errors"], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (f"{is_checkout}\n", "")


@pytest.mark.slow
def test_a_file_named_like_a_library_takes_nothing_over(tmp_path: Path) -> None:
    for name in ("torch", "lightning", "omegaconf", "hydra", "yaml", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the current folder')\n")
    peek = ["peek", "data.source.n_examples=200", "estimate=false", f"paths.cache={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", f"instruct_lit.{peek[0]}", *peek[1:]], capture_output=True, text=True, timeout=120,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("instruct-lit re", ["review", "report", "reproduce"]),
        ("python -m instruct_lit.ex", ["instruct_lit.export"]),
        ("instruct-lit train model=gpt2-", ["model=gpt2-large", "model=gpt2-medium", "model=gpt2-xl"]),
        ("python -m instruct_lit.train model=na", ["model=nano"]),
        ("instruct-lit train data.mask", ["data.mask_prompt="]),
        ("instruct-lit train data=hf data.source.rep", ["data.source.repo="]),
        ("instruct-lit train fit=", ["fit=true", "fit=false"]),
        ("instruct-lit train +trainer.max_s", ["+trainer.max_steps="]),
        ("instruct-lit train batching.layout=pa", ["batching.layout=padded", "batching.layout=packed"]),
        ("instruct-lit train batc", ["batching.", "batching="]),
        ("instruct-lit chat --he", ["--help"]),
        ("instruct-lit nothing x", []),
    ],
)
def test_the_last_word_is_completed(line: str, found: list[str]) -> None:
    assert words(line) == found


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_asks_for_the_words(tmp_path: Path) -> None:
    (tmp_path / "instruct-lit").write_text(f'#!/bin/sh\nexec {sys.executable} -m instruct_lit.cli "$@"\n')
    (tmp_path / "instruct-lit").chmod(0o755)
    script = SHELLS["bash"].read_text() + (
        '\nask() { COMP_LINE="$1"; COMP_POINT=${#1}; COMP_WORDBREAKS=$\' \\t\\n=:\'; $2; echo "${COMPREPLY[*]}"; }\n'
        "ask 'instruct-lit train model=gpt2-m' _instruct_lit\n"
        "ask 'instruct-lit tra' _instruct_lit\n"
        "ask 'python -m instruct_lit.train data.max_l' _instruct_lit_python\n"
    )
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(Path(cli.__file__).parents[1])},
    )  # fmt: skip
    assert done.stdout.splitlines() == ["gpt2-medium", "train", "data.max_length="], done.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_ask_for_the_same_words(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cli.main(["completion", shell])
    program = capsys.readouterr().out
    assert "instruct-lit completion words" in program and "python3" in program
    cli.main(["completion", "words", "instruct-lit train model=gpt2-m"])  # what these functions run
    assert capsys.readouterr().out == "model=gpt2-medium\n"
    if shutil.which(shell) is not None:
        done = subprocess.run([shell, "-n"], input=program, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["", "tcsh"])
def test_a_shell_without_completion_is_refused(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["completion", *shell.split()])
    assert ended.value.code == 2
    given = f"instruct-lit completion {shell}".strip()
    assert capsys.readouterr().err == f"error: {given}: no such shell; allowed are bash, zsh, fish\n"


def test_a_reader_that_ends_is_no_traceback() -> None:
    command = [sys.executable, "-m", "instruct_lit.cli", "completion", "bash"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (done.stderr, done.returncode) == ("", 0)
