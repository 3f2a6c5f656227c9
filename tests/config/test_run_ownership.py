"""A run owns its folder, and survives the reader of its output."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from instruct_lit.config.run_ownership import (
    LOCK,
    _in_use,
    distinct_folder,
    missing_parents,
    own_folder,
    refuse_folder_in_use,
    remove_if_unused,
)
from instruct_lit.errors import ConfigError
from instruct_lit.locks import exclusive
from tests.commands import Command


def test_a_second_run_of_the_same_second_has_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = str(tmp_path / "12-00-00")
    for expected in (name, f"{name}-2", f"{name}-3"):
        distinct_folder.cache_clear()  # as in another process
        assert distinct_folder(name) == distinct_folder(name) == expected and Path(expected).is_dir()
    distinct_folder.cache_clear()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert distinct_folder(name) == name  # processes of one run share it


def test_a_named_folder_with_a_run_in_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = f"hydra.run.dir={tmp_path}: another run works in this folder; wait until it ends, or choose another"
    refuse_folder_in_use([f"hydra.run.dir={tmp_path}"])
    with exclusive(tmp_path / LOCK, _in_use(tmp_path)):
        for refused in (
            lambda: refuse_folder_in_use(["seed=1", f"hydra.run.dir='{tmp_path}'"]),
            lambda: own_folder(tmp_path),
        ):
            with pytest.raises(ConfigError) as error:
                refused()
            assert str(error.value) == message
        monkeypatch.setenv("LOCAL_RANK", "1")  # a further process of the run that holds it
        refuse_folder_in_use([f"hydra.run.dir={tmp_path}"])
        own_folder(tmp_path)


@pytest.mark.parametrize("command", ["evaluate", "benchmark", "export", "reproduce"])
def test_the_folder_of_a_training_is_refused_to_other_commands(command: str, tmp_path: Path) -> None:
    """They would replace its responses and page, and the overrides that `reproduce` reads."""
    given = f"hydra.run.dir={tmp_path}"
    refuse_folder_in_use([given], command)
    (tmp_path / "provenance.json").touch()
    refuse_folder_in_use([given])
    with pytest.raises(ConfigError) as error:
        refuse_folder_in_use([given], command)
    reason = f"holds a training, whose files {command} would replace"
    assert str(error.value) == f"{given}: {reason}; choose another, such as {given}/{command}"


def test_an_output_whose_reader_has_ended_ends_nothing(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from instruct_lit.config.progress import survive_readers; survive_readers()\n"
        f"for n in range(20000): print('a line of text', n)\nPath({str(tmp_path / 'end')!r}).touch()"
    )
    environment = {**os.environ, "LC_ALL": "C"}
    writer = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert writer.stdout is not None and writer.stderr is not None
    writer.stdout.readline()
    writer.stdout.close()
    assert (writer.wait(timeout=60), writer.stderr.read()) == (0, b"") and (tmp_path / "end").exists()
    writer.stderr.close()


@pytest.mark.skipif(os.name == "nt", reason="no shell of POSIX")
def test_closed_standard_streams_become_the_null_device(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from instruct_lit.config.progress import survive_readers; "
        "survive_readers(); names = ('stdin', 'stdout', 'stderr'); streams = [getattr(sys, name) for name in names]\n"
        "print('out'); print('err', file=sys.stderr)\n"
        f"Path({str(tmp_path / 'end')!r}).write_text(str([(s.fileno(), s.isatty()) for s in streams]))"
    )
    command = ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, program]
    assert subprocess.run(command).returncode == 0
    assert (tmp_path / "end").read_text() == "[(0, False), (1, False), (2, False)]"


def test_a_character_that_the_encoding_lacks_is_escaped(tmp_path: Path) -> None:
    program = "from instruct_lit.config.progress import survive_readers; survive_readers(); print('caf\u00e9 \u2026')"
    with (tmp_path / "log").open("w") as log:
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        subprocess.run([sys.executable, "-c", program], stdout=log, env=environment, check=True)
    assert (tmp_path / "log").read_text() == "caf\\xe9 \\u2026\n"


@pytest.mark.parametrize(
    "wrong",
    [
        ["data.batch_size=0"],
        *(
            pytest.param([wrong], marks=pytest.mark.slow)
            for wrong in ("+callbacks.early_stopping.patienc=1", "bach_size=3")
        ),
        pytest.param(["-m", "seed=1,x"], marks=pytest.mark.slow),
    ],
)
def test_a_mistyped_command_leaves_no_dated_folder(
    wrong: list[str], command: Command, small: tuple[str, ...], tmp_path: Path
) -> None:
    outputs = [] if "-m" in wrong else [*small, f"paths.outputs={tmp_path}/outputs"]
    command("train", *outputs, *wrong, cwd=tmp_path, status=2)
    assert list((tmp_path).iterdir()) == []


def test_only_folders_without_work_and_new_ones_above_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr("atexit.register", lambda function, *arguments: at_exit.append(partial(function, *arguments)))
    (tmp_path / "mine").mkdir()
    for name, file in (("refused", "multirun.yaml"), ("worked", "trial.json")):
        folder = tmp_path / "mine" / "multirun" / name
        remove_if_unused(str(folder), missing_parents(str(folder)))
        folder.mkdir(parents=True)
        (folder / file).touch()
    for remove in at_exit:
        remove()
    assert [path.name for path in (tmp_path / "mine" / "multirun").iterdir()] == ["worked"]
    (tmp_path / "mine" / "multirun" / "worked" / "trial.json").unlink()
    for remove in at_exit[1:] + at_exit[:1]:
        remove()
    assert list((tmp_path / "mine").iterdir()) == [(tmp_path / "mine" / "multirun")]  # it was there before "worked"
