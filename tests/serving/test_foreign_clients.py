"""Calls of foreign pages, connections that go on and on, bodies that are refused, and calls that the shutdown ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlparse

import pytest

from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.serving import compat_uvicorn
from instruct_lit.serving.http import HostGuard, make_app
from tests.serving.conftest import run_in_thread
from tests.serving.test_http import ask, post

pytest.importorskip("openai")
CALL = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 1}).encode()


def call(server: SimpleNamespace, path: str, method: str = "GET", **headers: str) -> tuple[int, Any, Any]:
    """Status, headers and text of a call without body."""
    request = urllib.request.Request(server.url + path, None, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True), ("localhost:8000", True), ("LOCALHOST:1", True), ("127.0.0.1:99", True), ("[::1]:8000", True),
        ("[::1]", True), ("127.8.8.8", True), ("mine.example:80", True), ("evil.example", False),
        ("localhost.evil.example", False), ("127.0.0.1.evil.example:8000", False), ("evil.example:localhost", False),
        ("localhost@evil.example", False), ("localhost:80@evil.example", False), ("", False), ("[::1", False),
        ("8.8.8.8", False), ("0.0.0.0", False), ("localhost, evil.example", False), ("127.0.0.1\tevil", False),
    ],
)  # fmt: skip
def test_names_of_this_machine_and_those_given_are_allowed(host: str, allowed: bool) -> None:
    guard = HostGuard(None, ["Mine.example"], ["https://page.example"])
    assert guard.allows(host) == allowed
    assert (guard.refusal([(b"host", host.encode())]) is None) == allowed
    assert (guard.refusal([(b"host", b"localhost"), (b"origin", f"http://{host}".encode())]) is None) == allowed


@pytest.mark.parametrize(
    ("origin", "allowed"), [("https://page.example", True), ("null", False), ("https://page.example:8", False)]
)
def test_origins(origin: str, allowed: bool) -> None:
    guard = HostGuard(None, (), ["https://page.example"])
    assert (guard.refusal([(b"host", b"localhost"), (b"origin", origin.encode())]) is None) == allowed
    assert "[]" in str(guard.refusal([])) or "''" in str(guard.refusal([]))  # a call without Host


def test_a_page_elsewhere_cannot_use_a_server_without_a_key(server: SimpleNamespace) -> None:
    """By DNS rebinding `evil.example` is this machine: its name and its origin give it away."""
    foreign = {"Host": "evil.example", "Origin": "http://evil.example"}
    for path in ("/v1/models", "/health", "/openapi.json", "/metrics"):
        status, headers, text = call(server, path, **foreign)
        error = json.loads(text)["error"]
        assert status == 403 and error["code"] == "host_not_allowed" and headers["connection"] == "close"
        assert error["message"] == "Host 'evil.example': not a name of this server; allowed_hosts=[…] adds one"
    assert call(server, "/v1/models", Host="localhost:99")[0] == 200
    status, answer = post(server, "/v1/completions", CALL, Origin="https://evil.example")
    assert status == 403 and answer["error"]["message"] == (
        "Origin 'https://evil.example': not allowed to use this server; cors_origins=[…] adds it"
    )
    assert post(server, "/v1/completions", CALL, Origin="http://localhost:3000")[0] == 200
    assert call(server, "/v1/models", Origin="http://localhost:3000")[1]["access-control-allow-origin"] is None


def test_pages_that_may_use_the_server(start: Callable) -> None:
    server = start(cors_origins=["https://page.example"], allowed_hosts=["models.example"])
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST",
             "Access-Control-Request-Headers": "content-type"}  # fmt: skip
    status, headers, _ = call(server, "/v1/completions", "OPTIONS", Host="models.example", **asked)
    assert (status, headers["access-control-allow-origin"]) == (200, "https://page.example")
    assert (
        "content-type" in headers["access-control-allow-headers"] and "POST" in headers["access-control-allow-methods"]
    )
    _, headers, _ = call(server, "/v1/models", Origin="https://page.example")
    assert headers["access-control-allow-origin"] == "https://page.example"
    assert call(server, "/v1/models", Origin="https://other.example")[0] == 403


def test_with_a_key_every_name_is_allowed_unless_some_are_given(start: Callable) -> None:
    server = start(api_key="secret")
    assert call(server, "/v1/models", Host="models.example", Authorization="Bearer secret")[0] == 200
    named = start(api_key="secret", allowed_hosts=["models.example"])
    assert call(named, "/v1/models", Host="models.example", Authorization="Bearer secret")[0] == 200
    assert call(named, "/v1/models", Host="other.example", Authorization="Bearer secret")[0] == 403


def test_no_page_loads_anything_from_elsewhere(server: SimpleNamespace) -> None:
    assert [call(server, path)[0] for path in ("/docs", "/redoc", "/docs/oauth2-redirect")] == [404, 404, 404]
    assert json.loads(call(server, "/openapi.json")[2])["info"]["title"] == "instruct-lit"


@pytest.fixture
def impatient(chat_model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server that gives a connection 0.4 s without a call."""
    protocol = compat_uvicorn.idle_closing_protocol()
    monkeypatch.setattr(
        "instruct_lit.serving.server.idle_closing_protocol",
        lambda: type(
            "Quick", (protocol,), {"timeout_keep_alive": property(lambda self: 0.4, lambda self, value: None)}
        ),
    )
    from instruct_lit.core.generation.engine import Engine
    from instruct_lit.core.generation.sampling import SamplingSettings
    from instruct_lit.serving.completions import CompletionService

    engine = Engine(chat_model.model, chat_model.tokenizer, 2)
    service = CompletionService(chat_model, engine, SamplingSettings(max_new_tokens=2))
    url, stop = run_in_thread(make_app(service, max_body_bytes=1000))
    yield SimpleNamespace(url=url)
    stop()


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9000000\r\n\r\n"


WITHOUT_A_CALL = {
    "silence": (b"", b""),
    "one byte": (b"G", b""),
    "a head without end": (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ", b"a"),
    "one byte after a call": (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nG", b""),
    "a refused body without end": (HEAD + b"x" * 2000, b"x"),
    "a body that nobody wants": (HEAD.replace(b"POST /v1/completions", b"GET /health"), b"x"),
}


def test_a_connection_without_a_call_is_closed(impatient: SimpleNamespace) -> None:
    with ThreadPoolExecutor(len(WITHOUT_A_CALL)) as pool:  # side by side, since each waits for its end
        seconds = pool.map(lambda sent: seconds_until_closed(impatient.url, *sent), WITHOUT_A_CALL.values())
        found = dict(zip(WITHOUT_A_CALL, seconds, strict=True))
    assert all(0.3 < waited < 5 for waited in found.values()), found


def seconds_until_closed(url: str, sent: bytes, drip: bytes) -> float:
    begin = time.monotonic()
    with socket.create_connection(urlparse(url).netloc.split(":"), timeout=0.1) as client:
        client.sendall(sent)
        closed = False
        while not closed:
            assert time.monotonic() < begin + 10, "the connection stays open"
            try:
                if drip:
                    client.sendall(drip)
                closed = client.recv(10000) == b""
            except TimeoutError:
                continue
            except OSError:  # reset
                closed = True
    return time.monotonic() - begin


@pytest.mark.slow
def test_long_bodies_that_are_refused_do_not_delay_a_short_one(
    start: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, encode, n_long = start(), GPT2Tokenizer.encode, 0

    def slowly(self: GPT2Tokenizer, text: str, *options: Any) -> list[int]:
        nonlocal n_long
        if len(text) > 100_000:
            n_long += 1
            time.sleep(0.1)
            return [1] * 1000
        return encode(self, text, *options)

    monkeypatch.setattr(GPT2Tokenizer, "encode", slowly)
    body = json.dumps({"model": "tiny", "prompt": "a" * 200_000}).encode()
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(post(server, "/v1/completions", body)[0])) for _ in range(24)
    ]
    for thread in threads:
        thread.start()
    while not n_long:
        time.sleep(0.01)
    begin = time.monotonic()
    assert ask(server, max_tokens=1).choices and time.monotonic() - begin < 1.5 and n_long < 12
    for thread in threads:
        thread.join()
    assert found == [400] * 24


def test_a_client_that_leaves_within_its_body_is_no_error_of_the_server(
    server: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection(urlparse(server.url).netloc.split(":")) as client:
        client.sendall(HEAD.replace(b"9000000", b"500") + b"{")
    time.sleep(0.2)
    assert call(server, "/health")[0] == 200 and "unexpected" not in caplog.text


SERVER = """
import asyncio, sys, time
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.serving.completions import CompletionService
from instruct_lit.serving.http import make_app
from instruct_lit.serving import server
from tests.serving.conftest import ALPACA, tiny_chat_model
model = tiny_chat_model(ALPACA)
engine = Engine(model.model, model.tokenizer, 8)
step = engine.step
engine.step = lambda: (time.sleep(0.15), step())[1]
make = server.make_server
def impatient(*arguments):
    made = make(*arguments)
    made.config.timeout_graceful_shutdown = 1
    return made
server.make_server = impatient
server.run_server(make_app(CompletionService(model, engine, SamplingSettings())), "127.0.0.1", 0, lambda url: print(url, flush=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_calls_under_way_at_the_shutdown_are_finished_or_answered_with_503(sent: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    server = SimpleNamespace(url=process.stdout.readline().strip())
    found: dict[str, Any] = {}

    def complete(name: str, **options: Any) -> None:
        body = json.dumps({"model": "tiny", "prompt": "x", **options}).encode()
        request = urllib.request.Request(f"{server.url}/v1/completions", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                found[name] = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            found[name] = error.code, error.read().decode()

    calls = {"short": {"max_tokens": 4}, "long": {"max_tokens": 100}, "stream": {"max_tokens": 100, "stream": True}}
    threads = [threading.Thread(target=complete, args=(name,), kwargs=options) for name, options in calls.items()]
    with socket.create_connection(urlparse(server.url).netloc.split(":"), timeout=30) as sending:
        sending.sendall(HEAD + b"{")
        for thread in threads:
            thread.start()
        time.sleep(0.4)
        os.kill(process.pid, sent)
        for thread in threads:
            thread.join()
        rest = sending.recv(2000)
    _, errors = process.communicate(timeout=30)
    error = {"message": "The server is shutting down", "type": "server_error", "param": None, "code": "shutting_down"}
    assert found["short"][0] == 200 and json.loads(found["short"][1])["usage"]["completion_tokens"] == 4
    assert found["long"][0] == 503 and json.loads(found["long"][1]) == {"error": error}
    *_, last, end = found["stream"][1].split("\n\n")
    assert found["stream"][0] == 200 and last == "data: " + json.dumps({"error": error}) and end == ""
    assert rest.startswith(b"HTTP/1.1 503 ") and json.loads(rest.partition(b"\r\n\r\n")[2]) == {"error": error}
    if sent == signal.SIGTERM:
        assert "Traceback" not in errors and process.returncode == -signal.SIGTERM
    assert "ASGI" not in errors


def test_a_call_after_the_shutdown_has_begun_is_503(start: Callable) -> None:
    server = start()
    server.scheduler.close()
    status, answer = post(server, "/v1/completions", CALL)
    assert status == 503 and answer["error"]["message"] == "The server is shutting down"
