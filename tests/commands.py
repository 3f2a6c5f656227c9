"""Whole commands in processes of their own, as a person starts them.

The processes are forks of one that has imported the libraries (`multiprocessing`'s fork server): the command line, the
folder, the environment, the streams and the exit status are those of `python -m`, without seconds of imports each time.
"""

import atexit
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Command = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., "Started"]
LIBRARIES = ("lightning.pytorch", "tensorboard.summary.writer.event_file_writer", "matplotlib.pyplot", "torch.utils.tensorboard",
             "torch.distributed", "transformers", "tiktoken", "jinja2", "openai", "instruct_lit.train", "instruct_lit.evaluate",
             "instruct_lit.config.run_builders", "instruct_lit.reports.run_page")  # fmt: skip


class Started:
    """A command at work: what tests need of `subprocess.Popen`, with the output in files."""

    def __init__(
        self, name: str, overrides: tuple[str, ...], cwd: Path, environment: dict[str, str], log: Path
    ) -> None:
        self.out, self.err = log.with_suffix(".out"), log.with_suffix(".err")
        arguments = (name, overrides, cwd, environment, self.out, self.err)
        self._process = multiprocessing.get_context("forkserver").Process(target=_become, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def first_line(self, timeout: float = 120) -> str:
        """What it says first, once it has said it."""
        deadline = time.monotonic() + timeout
        while "\n" not in (said := self.out.read_text() if self.out.exists() else ""):
            assert self.poll() is None and time.monotonic() < deadline, self.err.read_text()[-4000:]
            time.sleep(0.05)
        return said.partition("\n")[0]

    def wait(self, timeout: float = 300) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            self.send_signal(signal.SIGKILL)
            raise TimeoutError(f"{timeout} s\n{self.err.read_text()[-4000:]}")
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _become(
    name: str, overrides: tuple[str, ...], cwd: Path, environment: dict[str, str], out: Path, err: Path
) -> None:
    """In the fork: be `python -m instruct_lit.<name> <overrides>`, or `python -m pdb <arguments>`, from here on."""
    gc.freeze()  # the libraries, which are not this command's garbage
    for number, path in ((1, out), (2, err)):
        with path.open("ab") as file:
            os.dup2(file.fileno(), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    module = name if name == "pdb" else f"instruct_lit.{name}"
    sys.argv = [module, *overrides]
    sys.modules.pop(module, None)
    status: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        traceback.print_exc()
        status = 1
    # A process of multiprocessing would wait here for pools that only the end of an interpreter ends.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session", autouse=True)
def fork_server() -> Iterator[None]:
    """What the fork server will have imported when a test first needs it, and that nothing asks the hub."""
    multiprocessing.get_context("forkserver").set_forkserver_preload([*LIBRARIES])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")  # read when it is imported
        yield


@pytest.fixture(scope="session")
def start(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """`start("train", "seed=1", cwd=folder)` starts `python -m instruct_lit.train seed=1` there."""
    logs = tmp_path_factory.mktemp("logs")
    started: list[Started] = []

    def run(name: str, *overrides: str, cwd: Path, log: Path | None = None) -> Started:
        environment = {**os.environ, "INSTRUCT_LIT_CACHE": str(cache), "COLUMNS": "80"}
        started.append(Started(name, overrides, cwd, environment, log or logs / str(len(started))))
        return started[-1]

    yield run
    for process in started:
        process.send_signal(signal.SIGKILL)


@pytest.fixture(scope="session")
def command(start: Start) -> Command:
    """`command("train", "seed=1", cwd=folder)` runs `python -m instruct_lit.train seed=1` there and returns its output."""

    def run(name: str, *overrides: str, cwd: Path, status: int = 0) -> "subprocess.CompletedProcess[str]":
        process = start(name, *overrides, cwd=cwd)
        code = process.wait()
        out, err = process.out.read_text(), process.err.read_text()
        assert code == status, f"status {code}\n{out[-2000:]}\n{err[-4000:]}"
        return subprocess.CompletedProcess([name, *overrides], code, out, err)

    return run


SMALL = (
    "data.source.n_examples=60",
    "data.split={train:40,val:10,test:10}",
    "data.batch_size=8",
    "model.pretrained=false",
    "model.path=null",
    "model.n_layers=2",
    "model.d_model=32",
    "model.context_length=96",
    "data.max_length=96",
    "generation.max_new_tokens=6",
    "callbacks.sample_answers.max_new_tokens=4",
    "trainer.log_every_n_steps=1",
    "verify=false",
)


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """Overrides that make a run of seconds."""
    return SMALL


@pytest.fixture(scope="session")
def small_run(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run: two epochs of a tiny random model on 40 demo examples."""
    folder = tmp_path_factory.mktemp("small")
    command("train", *SMALL, "trainer.max_epochs=2", "hydra.run.dir=run", cwd=folder)
    return folder / "run"
