"""How much of the program one reads to follow a record, or a chat request: the files and functions that it runs through.

    python -m benchmarks.call_paths            # exits with 1 when a path is longer than its limit
    python -m benchmarks.call_paths --names    # with the functions of every file
    python -m benchmarks.call_paths record     # one of them
    python -m benchmarks.call_paths --alone    # only for the core alone, which the limits are for

- *record*: the records of one file in the default configuration, from reading them to the end of the backward pass of
  the first batch: what runs inside the data module's hooks, its loader, and the training step.
- *request*: one plain and one streamed `/v1/chat/completions`, from the server's call of the application to the last
  byte, in all threads.

Each is counted for the core alone (the satellites that only make it faster, or group the split, are absent) and with
every satellite that the default uses. Comprehensions and lambdas belong to the function in which they stand.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import sys
import tempfile
import threading
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1] / "instruct_lit"
LIMITS = {"record": (12, 80), "request": (11, 80)}  # files and functions of the core alone
SATELLITES = ("accel", "datasets", "distributed", "hf", "reports")  # of these the default run uses some
# The server's own protocol before the application is called, and the stream that libraries print progress to.
OUTSIDE = ("serving/compat_uvicorn.py", "config/progress.py")


class CallRecorder:
    """Records which functions of the package are called, in all threads: always, or only inside of some `entries`."""

    def __init__(self, *entries: Callable[..., Any]) -> None:
        self.functions: set[tuple[str, str]] = set()
        self._entries: set[CodeType] = {entry.__code__ for entry in entries}  # type: ignore[attr-defined]
        self._depth = 0 if entries else 1

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Profile this thread and those that are started meanwhile."""
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]

    def _profile(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if code in self._entries and event in ("call", "return"):  # a generator is called and returns at every item
            self._depth += 1 if event == "call" else -1
        elif not self._depth:
            return
        if event == "call" and code.co_filename.startswith(str(ROOT)) and not code.co_name.startswith("<"):
            file = str(Path(code.co_filename).relative_to(ROOT))
            if file not in OUTSIDE:
                self.functions.add((file, code.co_qualname))


@contextmanager
def absent(*satellites: str) -> Iterator[None]:
    """Let the program find that these folders do not exist; they must not be imported yet."""
    from instruct_lit.config.model_builders import install_satellites

    modules = {f"instruct_lit.{name}": None for name in satellites}
    sys.modules.update(modules)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        install_satellites.cache_clear()


class _EndOfPath(BaseException):
    """The backward pass of the first batch is done."""


def record_path(folder: Path) -> CallRecorder:
    """The functions between a file of records and the end of the backward pass of their first batch."""
    import torch

    from instruct_lit.config.compose import run_command
    from instruct_lit.core.data.batching import Batch, ResumableLoader
    from instruct_lit.core.data.datamodule import InstructionData
    from instruct_lit.core.training.module import InstructionTuner
    from instruct_lit.train import train

    (folder / "records.json").write_text(
        json.dumps([{"instruction": f"Say {n}.", "output": f"{n}"} for n in range(40)])
    )
    original = torch.Tensor.backward
    recorder = CallRecorder(
        InstructionData.prepare_data, InstructionData.setup, InstructionData.train_dataloader, InstructionData.set_epoch,
        ResumableLoader.__iter__, Batch.to, InstructionTuner.training_step, original,
    )  # fmt: skip

    def backward(tensor: torch.Tensor, *args: Any, **options: Any) -> None:
        original(tensor, *args, **options)
        raise _EndOfPath

    options = {
        "data": "files", "data.path": folder / "records.json", "data.split": "{train:24,val:8,test:8}", "logger": "none",
        "paths.cache": folder / "cache", "hydra.run.dir": folder / "run", "evaluate_base": "false",
    }  # fmt: skip
    arguments, sys.argv = sys.argv, ["train", *(f"{key}={value}" for key, value in options.items())]
    torch.Tensor.backward = backward  # type: ignore[method-assign,assignment]
    try:
        with recorder.recording(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run_command("train", train)
    except _EndOfPath:
        return recorder
    finally:
        torch.Tensor.backward, sys.argv = original, arguments  # type: ignore[method-assign]
    raise AssertionError("the run ended before a backward pass")


def request_path(folder: Path) -> CallRecorder:
    """The functions that a chat request runs through in a server of a tiny model."""
    import queue

    from instruct_lit.config.model_builders import install_satellites
    from instruct_lit.core.data.template import Template
    from instruct_lit.core.data.tokenizer import GPT2Tokenizer
    from instruct_lit.core.generation.engine import Engine
    from instruct_lit.core.generation.sampling import SamplingSettings
    from instruct_lit.core.model.gpt import GPT, GPTConfig
    from instruct_lit.serving.chat_model import ChatModel
    from instruct_lit.serving.completions import CompletionService
    from instruct_lit.serving.http import make_app
    from instruct_lit.serving.metrics import Metrics
    from instruct_lit.serving.server import make_server

    install_satellites()
    model = GPT(GPTConfig(context_length=128, d_model=32, n_layers=2, n_heads=4)).eval()
    chat_model = ChatModel("tiny", model, GPT2Tokenizer(), Template("short", "Q: {{ instruction }}\nA: {{ response }}"))
    addresses: queue.SimpleQueue[str] = queue.SimpleQueue()
    recorder = CallRecorder()
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Name a colour."}], "temperature": 0}
    with recorder.recording():  # for the threads that are started
        engine = Engine(model, chat_model.tokenizer, max_rows=8)
        service = CompletionService(chat_model, engine, SamplingSettings(max_new_tokens=4), 8, 60, Metrics(engine))
        server = make_server(make_app(service), "127.0.0.1", 0, addresses.put)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        connection = http.client.HTTPConnection(addresses.get(timeout=20).removeprefix("http://"), timeout=60)
        for round_ in range(2):  # the first one imports, and fills caches
            if round_ == 1:
                recorder.functions.clear()
            for stream in (False, True):
                headers = {"Content-Type": "application/json"}
                connection.request("POST", "/v1/chat/completions", json.dumps(body | {"stream": stream}), headers)
                answer = connection.getresponse()
                assert answer.status == 200, answer.read()
                answer.read()
        found = set(recorder.functions)
        connection.close()
        server.should_exit = True
        thread.join(timeout=20)
    recorder.functions = found
    return recorder


def count(path: str, alone: bool) -> dict[str, list[str]]:
    """The functions of a path by file."""
    with tempfile.TemporaryDirectory() as folder, absent(*(SATELLITES if alone else ())):
        recorder = {"record": record_path, "request": request_path}[path](Path(folder))
    files = sorted({file for file, _ in recorder.functions})
    return {file: sorted(name for of, name in recorder.functions if of == file) for file in files}


def main() -> None:
    """Print the counts of both paths with their limits; exit with 1 when one is exceeded."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--names", action="store_true", help="print the functions of every file")
    parser.add_argument("--alone", action="store_true", help="count for the core alone")
    parser.add_argument("paths", nargs="*", choices=[*LIMITS, []], help="record, request; both by default")
    shown = parser.parse_args()
    exceeded = False
    for alone in (True,) if shown.alone else (True, False):
        for path in shown.paths or LIMITS:
            limits, found = LIMITS[path], count(path, alone)
            counts = len(found), sum(map(len, found.values()))
            limit = f" (limit: {limits[0]} files, {limits[1]} functions)" if alone else ""
            print(f"{path}, {'core alone' if alone else 'default'}: {counts[0]} files, {counts[1]} functions{limit}")
            for file, names in found.items() if shown.names else ():
                print(f"  {file}: {', '.join(names)}")
            exceeded |= alone and (counts[0] > limits[0] or counts[1] > limits[1])
    sys.exit(int(exceeded))


if __name__ == "__main__":
    main()
