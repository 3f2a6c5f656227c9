"""Downloads against a local server that behaves well, slowly and badly."""

import gc
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from instruct_lit.datasets import download
from instruct_lit.datasets.download import fetch
from instruct_lit.errors import DownloadError

pytestmark = pytest.mark.filterwarnings("ignore:.*socket.*:pytest.PytestUnraisableExceptionWarning")

CONTENT = b'[{"instruction": "a", "output": "b"}]'
SHA256 = hashlib.sha256(CONTENT).hexdigest()
Answer = Callable[[BaseHTTPRequestHandler, int], None]


def good(request: BaseHTTPRequestHandler, n: int) -> None:
    send(request, 200, CONTENT)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """pooch leaves the connection of a failed request to the garbage collector, which is not to find it in another test."""
    yield
    gc.collect()


def send(request: BaseHTTPRequestHandler, status: int, body: bytes, length: int | None = None) -> None:
    request.send_response(status)
    request.send_header("Content-Length", str(len(body) if length is None else length))
    request.end_headers()
    request.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str], Callable[[Answer], None]]]:
    """The URL of a file, the paths asked for so far, and a way to say how it is answered (with the number of the try)."""
    monkeypatch.setattr(download, "BACK_OFF_S", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    asked: list[str] = []
    answers: list[Answer] = [good]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answers[0](self, len(asked))

        def log_message(self, format: str, *args: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/data.json", asked, lambda answer: answers.__setitem__(0, answer)
    running.shutdown()
    running.server_close()


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_first_run_downloads_and_the_second_does_not_ask(server, tmp_path: Path) -> None:
    url, asked, _ = server
    path = fetch(url, tmp_path, SHA256)
    assert path.read_bytes() == CONTENT and fetch(url, tmp_path, SHA256) == path
    assert asked == ["/data.json"] and left(tmp_path) == [path.name]


def test_an_unknown_sum_is_recorded_at_first_sight_and_checked_from_then_on(server, tmp_path: Path) -> None:
    url, _, _ = server
    path = fetch(url, tmp_path)
    record = tmp_path / f"{path.name}.sha256"
    assert record.read_text() == SHA256
    record.write_text("")  # killed while it was written
    assert fetch(url, tmp_path) == path and record.read_text() == SHA256
    path.write_bytes(b"changed")
    with pytest.raises(
        DownloadError, match=rf"expected {SHA256}; the file has changed; delete it to download it again"
    ):
        fetch(url, tmp_path)


def test_a_file_put_there_by_hand_is_taken(server, tmp_path: Path) -> None:
    url, asked, answer = server
    answer(lambda request, n: send(request, 404, b""))
    with pytest.raises(DownloadError) as caught:
        fetch(url, tmp_path)
    place = Path(str(caught.value).split("save the file as ")[1].split(", give")[0])
    place.write_bytes(CONTENT)
    assert fetch(url, tmp_path) == place and len(asked) == 1


def test_a_server_that_fails_twice_is_asked_again(server, tmp_path: Path) -> None:
    url, asked, answer = server
    answer(lambda request, n: send(request, 503, b"") if n < 3 else good(request, n))
    assert fetch(url, tmp_path, SHA256).read_bytes() == CONTENT
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("answer", "message", "n_asked"),
    [
        (lambda request, n: send(request, 404, b""), "the server returns 404", 1),
        (lambda request, n: send(request, 500, b""), "the server returns 500", 4),
        (lambda request, n: send(request, 200, CONTENT[:9], len(CONTENT)), "cannot be reached", 4),  # half a file
        (lambda request, n: send(request, 200, b"<!DOCTYPE html><p>Log in"), "received an HTML page", 1),
        (lambda request, n: send(request, 200, b"[]"), "received another file (sha256", 1),
    ],
)
def test_what_a_bad_server_sends_is_never_kept(
    server, tmp_path: Path, answer: Answer, message: str, n_asked: int
) -> None:
    url, asked, set_answer = server
    set_answer(answer)
    with pytest.raises(DownloadError) as caught:
        fetch(url, tmp_path, SHA256)
    assert message in str(caught.value) and url in str(caught.value)
    assert left(tmp_path) == [] and len(asked) == n_asked


def test_an_html_page_is_refused_without_a_known_sum(server, tmp_path: Path) -> None:
    url, _, answer = server
    answer(lambda request, n: send(request, 200, b"\n<html>"))
    with pytest.raises(DownloadError, match="received an HTML page instead of data; it was deleted"):
        fetch(url, tmp_path)
    assert left(tmp_path) == []


def test_without_network_the_message_says_what_can_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "BACK_OFF_S", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(DownloadError) as caught:
        fetch("http://127.0.0.1:9/data.json", tmp_path)
    message = str(caught.value)
    assert "http://127.0.0.1:9/data.json cannot be reached" in message
    assert f"save the file as {tmp_path}" in message and "data=demo" in message


def test_what_is_no_url_is_said(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"^records.json: Invalid URL 'records.json'.* save the file as"):
        fetch("records.json", tmp_path)


def test_an_unwritable_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match=r"paths.cache: .*file/downloads cannot be written"):
        fetch("http://127.0.0.1:9/data.json", tmp_path / "file" / "downloads")


def test_an_interrupted_download_is_never_used(server, tmp_path: Path) -> None:
    url, asked, answer = server
    stalled = threading.Event()

    def stall(request: BaseHTTPRequestHandler, n: int) -> None:
        send(request, 200, CONTENT[:9], len(CONTENT))
        request.wfile.flush()
        stalled.wait(20)

    answer(stall)
    program = f"from pathlib import Path; from instruct_lit.datasets.download import fetch; fetch({url!r}, Path({str(tmp_path)!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.DEVNULL, env={**os.environ, "NO_PROXY": "127.0.0.1"}
    )
    deadline = time.monotonic() + 30
    while not asked and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stalled.set()
    answer(good)
    assert fetch(url, tmp_path, SHA256).read_bytes() == CONTENT
