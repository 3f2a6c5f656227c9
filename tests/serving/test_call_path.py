"""How much of the package one chat request runs through: few enough files and functions to be read in one go."""

import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType, SimpleNamespace
from typing import Any

import pytest

import instruct_lit
from instruct_lit.core.model import attention
from tests.serving.test_http import ask

PACKAGE = str(Path(instruct_lit.__file__).parent)
EXPRESSIONS = ("<module>", "<listcomp>", "<genexpr>", "<setcomp>", "<dictcomp>")  # parts of the function they stand in
MAX_FILES, MAX_FUNCTIONS = 11, 76


def test_a_chat_request_runs_through_few_files_and_functions(
    start: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain and a streamed request, from the server's call of the application to the last byte, without accel."""
    monkeypatch.setattr(attention, "KERNELS", [])
    called: set[CodeType] = set()
    recording = False

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if not recording or event != "call" or code.co_name in EXPRESSIONS:
            return
        if code.co_filename.startswith(PACKAGE) and not code.co_filename.endswith("compat_uvicorn.py"):
            called.add(code)

    threading.setprofile(note)  # for the threads that the server starts
    try:
        server = start()
        ask(server, max_tokens=2)  # imports, caches, worker threads
        recording = True
        ask(server, max_tokens=4)
        list(ask(server, max_tokens=4, stream=True))
        recording = False
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]
    files = {code.co_filename for code in called}
    listed = sorted(f"{code.co_filename.removeprefix(PACKAGE)}:{code.co_qualname}" for code in called)
    assert len(files) <= MAX_FILES and len(called) <= MAX_FUNCTIONS, listed
