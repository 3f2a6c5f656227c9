"""The message of an exception, whoever raised it, and the exit status."""

import bdb
import errno
import signal
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, OverrideParseException
from omegaconf import OmegaConf
from safetensors import SafetensorError

from instruct_lit.config import messages
from instruct_lit.config.compose import CONF, expanded, run_command
from instruct_lit.config.messages import explain, one_message, warn_of_repeated_keys
from instruct_lit.config.schema import COMMANDS
from instruct_lit.errors import ConfigError, DataError, TrialPruned
from tests.commands import Command
from tests.configs import composed


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DataError("records.json: empty"), "error: records.json: empty\n"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: paths.outputs: No space left on device; files written before are intact\n"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "error: paths.outputs: No space left on device; files written before are intact\n"),
        (OSError(errno.EFBIG, "File too large", "/out/x"), "error: /out/x: File too large; files written before are intact\n"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), "error: the current folder was removed; change to one that exists (cd)\n"),
        (RuntimeError("Could not determine home directory."), "error: ~: there is no such home folder on this machine; write the whole path in its place, or set HOME\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/out/x"), "error: /out/x: Permission denied; choose another folder (paths.outputs=…, paths.cache=…)\n"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/proc/x"), "error: /proc/x: No such file or directory; choose another folder (paths.outputs=…, paths.cache=…)\n"),
        (FileExistsError(errno.EEXIST, "File exists", "/out/x"), "error: /out/x: File exists; choose another folder (paths.outputs=…, paths.cache=…)\n"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/out/x"), "error: /out/x: File name too long; choose another folder (paths.outputs=…, paths.cache=…)\n"),
        (RuntimeError("DataLoader worker (pid(s) 3, 4) exited unexpectedly"), "error: data.n_workers: a process that loads batches was killed, mostly for want of memory or of /dev/shm; use data.n_workers=0, or give it more (docker run --shm-size=1g)\n"),
    ],
)  # fmt: skip
def test_an_error_that_the_user_can_correct_is_one_message_and_status_2(
    error: Exception, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "hydra.run.dir=/proc/x"])
    with pytest.raises(SystemExit) as ended, one_message("train"):
        raise error
    assert ended.value.code == 2 and capsys.readouterr().err == message


def test_an_unexpected_error_is_one_line_and_its_traceback_in_the_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": {"runtime": {"output_dir": str(tmp_path)}}})
    )
    with pytest.raises(SystemExit) as ended, one_message("train"):
        raise ValueError("bad \x1b[2J shape\nsecond line")
    assert ended.value.code == 1
    place = tmp_path / "error.txt"
    assert capsys.readouterr().err == (
        f"error: ValueError: bad \\x1b[2J shape; an unexpected error, its traceback is in {place}\n"
    )
    assert "Traceback (most recent call last)" in place.read_text() and "second line" in place.read_text()


def test_without_a_run_folder_the_traceback_is_in_the_temporary_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    with pytest.raises(SystemExit) as ended, one_message("chat"):
        raise OSError(errno.EBADF, "Bad file descriptor")
    (place,) = tmp_path.glob("instruct-lit-*-error.txt")
    assert ended.value.code == 1 and capsys.readouterr().err.endswith(f"its traceback is in {place}\n")


def test_interrupted_and_pruned_have_their_own_status() -> None:
    for error, status in ((KeyboardInterrupt(), 130), (bdb.BdbQuit(), 130), (TrialPruned("pruned at step 3"), 3)):
        with pytest.raises(SystemExit) as ended, one_message("train"):
            raise error
        assert ended.value.code == status


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal on Windows")
def test_a_request_to_end_unwinds_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, status in (("SIGTERM", 143), ("SIGHUP", 129)):
        signal.signal(signal.Signals[name], signal.SIG_DFL)  # nohup has it ignored
        with pytest.raises(SystemExit) as ended, one_message("train"), tempfile.TemporaryDirectory(dir=tmp_path):
            signal.raise_signal(signal.Signals[name])
        assert ended.value.code == status and not list(tmp_path.iterdir())
        assert capsys.readouterr().err == f"ended by {name}; files written before are intact\n"
        assert signal.getsignal(signal.Signals[name]) == signal.SIG_DFL


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_whose_exception_a_library_swallows_ends_the_command(
    name: str, status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def library() -> None:
        with suppress(KeyboardInterrupt, SystemExit):
            signal.raise_signal(signal.Signals[name])
        raise RecursionError("numpy was imported in part")

    of_python = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
    before = signal.signal(signal.Signals[name], of_python)
    with pytest.raises(SystemExit) as ended, one_message("evaluate"):
        library()
    assert ended.value.code == status and "numpy" not in capsys.readouterr().err
    assert signal.getsignal(signal.Signals[name]) == of_python
    signal.signal(signal.Signals[name], before)
    monkeypatch.setattr(messages, "_written", lambda *place: Path("error.txt"))
    with pytest.raises(SystemExit) as ended, one_message("evaluate"):
        raise RecursionError("of the next command")
    assert ended.value.code == 1 and "of the next command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("data.bach_size=3", "did you mean data.batch_size?"),
        pytest.param("optimiser.lr=1", "did you mean optimizer", marks=pytest.mark.slow),
        ("max_epochs=1", "did you mean trainer.max_epochs?"),
        pytest.param("lr=1e-4", "did you mean optimizer.lr?", marks=pytest.mark.slow),
        ("mask_prompt=false", "did you mean data.mask_prompt?"),
        pytest.param("optimizer.learning_rate=1e-4", "did you mean optimizer.lr?", marks=pytest.mark.slow),
        pytest.param("per_device_train_batch_size=2", "did you mean data.batch_size?", marks=pytest.mark.slow),
        ("hydra.sweeper.seeds=[1,2]", "did you mean sweep=seeds? The seeds are those of seed=1,2,3"),
    ],
)
def test_a_misspelt_key_is_answered_with_the_nearest_one_in_the_tree(override: str, nearest: str) -> None:
    with pytest.raises(Exception, match="override") as raised:
        composed("train", override)
    message = explain(raised.value, "train")
    assert nearest in message and f"'{override.partition('=')[0]}'" in message
    assert "+" not in message or "seeds" in override  # what to add is not advised where the key exists


def test_a_key_of_another_choice_of_a_group_is_named_as_that() -> None:
    for overrides in (
        ("callbacks=none", "callbacks.sample_answers=null"),
        ("logger=none", "logger.tensorboard.name=x"),
    ):
        with pytest.raises(Exception, match="override") as raised:
            composed("train", *overrides)
        key, group = overrides[1].partition("=")[0], overrides[0].partition("=")[0]
        message = explain(raised.value, "train")
        choice = {"callbacks": "default", "logger": "tensorboard"}[group]
        node = ".".join(key.split(".")[:2])
        assert f"{node} belongs to {group}={choice}; choose that, or leave {node} out" in message and "+" not in message
        assert "did you mean" not in message and key.startswith(group)


@pytest.mark.parametrize(
    ("command", "given", "nearest"),
    [
        ("evaluate", ("judge=ollama", "judge.modle=x"), "did you mean judge.model?"),
        ("train", ("sweep=lr_range", "finder.nsteps=30"), "did you mean finder.n_steps?"),
        ("train", ("data=book", "data.source.ulr=x"), "did you mean data.source.url?"),
        ("train", ("sweep=lr_range", "finder.max_size=30"), "finder.max_size belongs to sweep=batch_size; choose that"),
        ("train", ("sweep=optuna", "hydra.sweeper.ntrials=3"), "did you mean hydra.sweeper.n_trials?"),
        (
            "train",
            ("seed=1", "hydra.sweeper.n_trials=3"),
            "hydra.sweeper.n_trials belongs to sweep=optuna; choose that",
        ),
        ("train", ("seed=1", "hydra.launcher.n_jobs=3"), "hydra.launcher.n_jobs belongs to launcher=joblib; choose"),
        ("train", ("seed=1", "hydra.sweep.dirr=x"), "did you mean hydra.sweep.dir?"),
        ("train", ("data=demo", "data.source.ulr=x"), "allowed in data.source: _target_, name, n_examples, seed"),
    ],
)
def test_a_misspelt_key_of_a_chosen_group_is_answered_with_that_of_the_choice(
    command: str, given: tuple[str, str], nearest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [command, *given])
    with pytest.raises(Exception, match="override") as raised:
        composed(command, *given)
    message = explain(raised.value, command)
    assert nearest in message and "+" not in message


@pytest.mark.parametrize("command", ["evaluate", "arena", "benchmark"])
def test_a_key_of_a_group_that_is_off_asks_for_a_choice(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [command, "judge.model=x"])
    with pytest.raises(SystemExit) as ended, one_message(command):
        composed(command, "judge.model=x")
    assert ended.value.code == 2
    choices = "local, ollama, openai, scores"
    message = f"error: judge.model=x: requires a choice of judge; add judge= with one of {choices}\n"
    assert capsys.readouterr().err == message


def test_what_cannot_be_is_not_advised() -> None:
    with pytest.raises(Exception, match="override") as raised:
        composed("train", "zzz=1")
    assert "+zzz" not in explain(raised.value, "train")
    with pytest.raises(Exception, match="override") as raised:
        composed("arena", "runs=a")
    assert explain(raised.value, "arena").splitlines()[-1] == "  give a list: runs=[a]"


@pytest.mark.parametrize(("value", "quoted"), [("a=b.json", '"a=b.json"'), ("ä.json", '"ä.json"'), ("a'b", '"a\'b"')])
def test_a_value_that_the_grammar_refuses_is_shown_in_quotes(value: str, quoted: str) -> None:
    with pytest.raises(OverrideParseException) as raised:
        composed("train", "data=files", f"data.path={value}")
    message = explain(raised.value, "train")
    assert message.startswith(f"data.path={value}: ") and message.endswith(f"'data.path={quoted}'")
    assert composed("train", "data=files", f"data.path={quoted}").data.path == value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("model=gpt3", "did you mean model=gpt2?"),
        ("launcher=slurm", "did you mean launcher=submitit?"),
        (
            "optimizer.lr=1e-3,2e-3",
            "optimizer.lr=1e-3,2e-3: several values; add -m to run each in turn, or write a list",
        ),
        ("--batch-size=8", "--batch-size: settings have no dashes; write data.batch_size=8; see --help"),
        ("--nonsense", "--nonsense: settings have no dashes; write"),
        ("--cfg=job -m", "Only one of --run, --multirun, --cfg"),
    ],
)
def test_what_is_no_choice_or_no_setting_is_answered_with_what_is(
    given: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train", *given.split()])
    with pytest.raises(SystemExit) as ended:
        run_command("train", lambda config: None)
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and message in errors and "unexpected" not in errors


def test_a_warning_of_this_package_is_one_line_without_its_place_in_the_source() -> None:
    of_python = warnings.formatwarning
    with one_message("train"):
        ours = warnings.formatwarning("top_k has no effect", UserWarning, messages.__file__, 7)
        other = warnings.formatwarning("deprecated", UserWarning, warnings.__file__, 7)
    assert ours == "warning: top_k has no effect\n"
    assert other.startswith(f"{warnings.__file__}:7: UserWarning: deprecated\n")
    assert warnings.formatwarning is of_python


def test_slurm_that_is_missing_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, one_message("train"):
        raise RuntimeError('Could not detect "srun", are you indeed on a slurm cluster?')
    message = capsys.readouterr().err
    assert ended.value.code == 2 and "launcher=submitit_local" in message and "traceback" not in message


def test_a_job_of_submitit_that_was_refused_ends_the_sweep_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    failed = pytest.importorskip("submitit.core.utils").UncompletedJobError
    with pytest.raises(SystemExit) as ended, one_message("train"):
        raise failed(
            "Job 7\nhas not produced any output\nError stream produced:\n---\nerror: s/0: wait until it ends\n"
        )
    assert ended.value.code == 2 and capsys.readouterr().err == "error: s/0: wait until it ends\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_what_libraries_log_for_developers_is_not_printed(command: str) -> None:
    """Such as a line for each request to the hub."""
    text = (CONF / f"{command}.yaml").read_text()
    assert all(f"override hydra/{kind}_logging: none" in text for kind in ("hydra", "job"))


def test_a_key_with_several_values_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    warn_of_repeated_keys(["seed=1", "data=book", "data=files", "-m", "seed=1", "+a.b=1", "a.b=2", "~c", "--cfg=job"])
    assert capsys.readouterr().err == (
        "warning: data has several values; the last one is used\nwarning: a.b has several values; the last one is used\n"
    )


def test_a_home_folder_is_expanded_in_values_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for argument, expected in (
        ("paths.outputs=~/runs", "paths.outputs=/home/someone/runs"), ("ckpt_path=~", "ckpt_path=/home/someone"),
        ("~callbacks.early_stopping", "~callbacks.early_stopping"), ("data.path=a~/b", "data.path=a~/b"),
        ("~/folder", "~/folder"),
    ):  # fmt: skip
        assert expanded(argument) == expected
    with pytest.raises(ConfigError) as raised:
        expanded("paths.cache=~no-body9/x")
    message = "paths.cache=~no-body9/x: there is no such home folder on this machine; write the whole path"
    assert str(raised.value) == message
    for variables, cache in (
        ({}, "/home/someone/.cache/instruct-lit"), ({"XDG_CACHE_HOME": "/x"}, "/x/instruct-lit"),
        ({"XDG_CACHE_HOME": "", "INSTRUCT_LIT_CACHE": ""}, "/home/someone/.cache/instruct-lit"),
        ({"INSTRUCT_LIT_CACHE": "~/mine"}, "/home/someone/mine"),
    ):  # fmt: skip
        for name in ("XDG_CACHE_HOME", "INSTRUCT_LIT_CACHE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert composed("train").paths.cache == cache


def test_options_may_stand_between_overrides(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine" / "optimizer").mkdir(parents=True)
    (tmp_path / "mine/optimizer/sgd.yaml").write_text("_target_: torch.optim.SGD\nlr: 0.5\n")
    given = (
        "seed=1",
        "--config-dir",
        "mine",
        "optimizer=sgd",
        "--cfg=job",
        "~callbacks.early_stopping",
        "++data.source.name=x",
    )
    found = OmegaConf.create(command("train", *given, cwd=tmp_path).stdout)
    assert (found.seed, found.optimizer.lr, found.optimizer._target_) == (1, 0.5, "torch.optim.SGD")
    assert "early_stopping" not in found.callbacks and found.data.source.name == "x"


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("adapter=3", ValueError("group override must be a string or a list. Got int")),
        ("adapter=[1]", TypeError("argument of type 'int' is not iterable")),
        ("adapter=null", ValueError("group override must be a string or a list. Got NoneType")),
    ],
)
def test_a_group_that_is_given_no_name_is_named_with_its_choices(
    given: str, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", ["train", "trainer.max_steps=3", given])
    with pytest.raises(SystemExit) as ended, one_message("train"):
        raise error
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {given}: a group needs a choice; allowed are dora, lora, none, qlora\n"


@pytest.mark.parametrize("key", ["seed", "data.batch_size", "forgetting"])
def test_a_value_that_cannot_be_left_open_is_one_line(key: str) -> None:
    with pytest.raises(ConfigCompositionException) as caught:
        composed("train", f"{key}=null")
    assert explain(caught.value, "train") == f"{key}=null: a value is needed; leave it out for the default"
