"""The serve command: it prints its URL, answers, stops on Ctrl-C without a traceback, and refuses a public address without a key."""

import os
import signal
import socket
from pathlib import Path

import pytest

from instruct_lit.errors import ConfigError
from instruct_lit.serving.server import usable_port
from tests.commands import Command, Start


def test_a_port_in_use_and_a_foreign_address_are_errors() -> None:
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
    name, _, url = process.first_line().removesuffix(" (Ctrl-C stops)").partition(" at ")
    with openai.OpenAI(base_url=url, api_key="secret", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [name] == ["run"]
        messages = [{"role": "user", "content": "Name a colour."}]
        answer = client.chat.completions.create(model=name, messages=messages, max_tokens=3)
        assert answer.usage.completion_tokens <= 3
    process.send_signal(signal.SIGINT)
    process.wait(30)
    output = process.out.read_text() + process.err.read_text()
    assert "Traceback" not in output and "secret" not in output
    assert os.listdir(tmp_path) == []  # the key is not on the disk


def test_errors_are_listed_together(command: Command, tmp_path: Path) -> None:
    done = command(
        "serve", "run=nowhere", "host=0.0.0.0", "port=70000", "max_waiting=0", "allowed_hosts=['a b:80']",
        "cors_origins=['*',example.org]", cwd=tmp_path, status=2
    )  # fmt: skip
    assert done.stderr.splitlines() == [
        "error: run=nowhere: no such folder (a run folder, a bundle or a Hugging Face directory)",
        "  port=70000: must be below 65536",
        "  max_waiting=0: must be at least 1",
        "  allowed_hosts=[a b:80]: no host name; give one such as models.example.org",
        "  host=0.0.0.0: other machines could reach it; give api_key=… or INSTRUCT_LIT_API_KEY, or keep 127.0.0.1",
        "  cors_origins=[*]: any web page could use the server; give api_key=…, or name the pages",
        "  cors_origins=[example.org]: not an origin; give one such as https://example.org",
    ]
