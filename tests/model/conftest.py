"""A small Hugging Face directory, and a server on 127.0.0.1 that speaks the protocol of the Hugging Face hub."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from safetensors.torch import save_file

from instruct_lit.model.gpt import GPT, GPTConfig
from instruct_lit.model.pretrained import WEIGHTS, hf_config, hf_state_dict, load_gpt

TINY = GPTConfig(n_vocab=97, context_length=32, d_model=48, n_layers=2, n_heads=4)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def tiny() -> GPT:
    """A model with random weights."""
    return load_gpt(pretrained=False, config=TINY, seed=5)


@pytest.fixture
def directory(tiny: GPT, tmp_path: Path) -> Path:
    """The same model as a Hugging Face directory."""
    folder = tmp_path / "tiny-gpt2"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(hf_config(TINY)))
    save_file(hf_state_dict(tiny), folder / WEIGHTS, metadata={"format": "pt"})
    return folder


class Hub:
    """The repository `me/tiny` on a hub with a store for large files, which is another host as the real one is.

    Small files are answered in place with their git sha as ETag; for large ones the hub redirects to the store and
    announces sha256 and size. `sent` may be replaced to change what the store sends; `stall_after` makes the store
    stop after so many bytes until `go_on` is set.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.requests: list[str] = []
        self.sent: Callable[[bytes], bytes] = lambda content: content
        self.stall_after: int | None = None
        self.stalled, self.go_on = threading.Event(), threading.Event()
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), self._handler(store)) for store in (False, True)]
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        hosts = ("127.0.0.1", "localhost")  # newer clients follow redirects that stay on a host
        self.endpoint, self.store = (f"http://{h}:{s.server_port}" for h, s in zip(hosts, self._servers, strict=True))

    def close(self) -> None:
        self.go_on.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _handler(self, is_store: bool) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                hub._store(self) if is_store else hub._resolve(self)

            do_GET = do_HEAD

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler

    def _resolve(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.rpartition("/")[2]
        content = self.files.get(name)
        if request.path != f"/me/tiny/resolve/{COMMIT}/{name}" or content is None:
            _answer(request, 404, {"X-Error-Code": "EntryNotFound", "Content-Length": "0"})
        elif name.endswith(".json"):
            git_sha = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{git_sha}"', "Content-Length": str(len(content))}
            _answer(request, 200, headers, content)
        else:
            sha256 = hashlib.sha256(content).hexdigest()
            headers = {
                "X-Repo-Commit": COMMIT,
                "X-Linked-Etag": f'"{sha256}"',
                "X-Linked-Size": str(len(content)),
                "Location": f"{self.store}/{sha256}",
                "Content-Length": "0",
            }
            _answer(request, 302, headers)

    def _store(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.path.strip("/")
        content = next(c for c in self.files.values() if hashlib.sha256(c).hexdigest() == wanted)
        content = self.sent(content)
        first = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        body = content[first:]
        headers = {"Content-Length": str(len(body))}
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        if self.stall_after is None:
            _answer(request, 206 if first else 200, headers, body)
            return
        _answer(request, 200, headers, body[: self.stall_after])
        request.wfile.flush()
        self.stalled.set()
        self.go_on.wait(30)
        request.close_connection = True


def _answer(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes = b"") -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command == "GET":
        request.wfile.write(body)


@pytest.fixture
def hub(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that serves the small directory; this process asks it instead of the real one, and waits for nothing."""
    import huggingface_hub
    from huggingface_hub import constants

    server = Hub({name: (directory / name).read_bytes() for name in ("config.json", WEIGHTS)})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    yield server
    huggingface_hub.close_session()
    server.close()
