"""The serve command: it says where it listens, answers, ends on Ctrl-C without a trace, and refuses an open door."""

import os
import signal
import socket
from pathlib import Path

import pytest

from instruct_lit.errors import ConfigError
from instruct_lit.serve import usable_port
from tests.commands import Command, Start


def test_a_port_that_is_taken_and_an_address_of_others_are_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"^host=127.0.0.1, port={port}: Address already in use; port=0 takes a free"
        ):
            usable_port("127.0.0.1", port)
    assert usable_port("127.0.0.1", port) == port and usable_port("localhost", 0) > 0
    with pytest.raises(ConfigError, match="host=192.0.2.1, port=0: "):
        usable_port("192.0.2.1", 0)


def test_it_serves_until_ctrl_c(start: Start, small_run: Path, tmp_path: Path) -> None:
    openai = pytest.importorskip("openai")
    pytest.importorskip("uvicorn")
    process = start("serve", f"run={small_run}", "port=0", "api_key=secret", cwd=tmp_path)
    name, _, url = process.first_line().removesuffix(" (Ctrl-C ends)").partition(" at ")
    with openai.OpenAI(base_url=url, api_key="secret", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [name] == ["run"]
        messages = [{"role": "user", "content": "Name a colour."}]
        answer = client.chat.completions.create(model=name, messages=messages, max_tokens=3)
        assert answer.usage.completion_tokens <= 3
    process.send_signal(signal.SIGINT)
    process.wait(30)
    said = process.out.read_text() + process.err.read_text()
    assert "Traceback" not in said and "secret" not in said
    assert os.listdir(tmp_path) == []  # the key lies nowhere


def test_errors_are_told_together(command: Command, tmp_path: Path) -> None:
    done = command(
        "serve", "run=nowhere", "host=0.0.0.0", "port=70000", "max_waiting=0", cwd=tmp_path, status=2
    )  # fmt: skip
    assert done.stderr.splitlines() == [
        "error: run=nowhere: no such folder (a run folder, a bundle or a Hugging Face directory)",
        "  port=70000: must be between 0 (a free one) and 65535",
        "  max_waiting=0: must be above 0",
        "  host=0.0.0.0: others could reach it; give api_key=… or INSTRUCT_LIT_API_KEY, or stay with 127.0.0.1",
    ]
