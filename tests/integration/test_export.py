"""The export command: what it leaves is opened by others and gives our logits; its errors; nothing is pushed unasked."""

import json
import shutil
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
import torch

from instruct_lit.core.bundle import open_model
from instruct_lit.errors import ConfigError
from instruct_lit.exporters.hub import push
from tests.commands import Command

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.mark.slow
def test_hf_with_another_template(command: Command, small_run: Path, tmp_path: Path) -> None:
    done = command("export", f"run={small_run}", "template=chatml", "hydra.run.dir=out", cwd=tmp_path)
    assert "README.md" in done.stdout and "model.safetensors" in done.stdout
    assert "out/hf gives the same losses, prompts and answers in instruct-lit, transformers" in done.stdout
    before, after = open_model(small_run), open_model(tmp_path / "out/hf")
    assert after.template.name == "chatml" and before.template.name == "alpaca"
    assert torch.equal(before.model(IDS), after.model(IDS))
    card = (tmp_path / "out/hf/README.md").read_text()
    assert "Licence of the data: Apache-2.0" in card and "| exact_match |" in card and "--- |" not in card
    assert "python -m instruct_lit.train data.source.n_examples=60" in card and "<|im_start|>user" in card
    shutil.copytree(tmp_path / "out/hf", tmp_path / "my-model")
    command("export", "run=my-model", "verify=false", "hydra.run.dir=again", cwd=tmp_path)
    assert "# my-model\n" in (tmp_path / "again/hf/README.md").read_text()


@pytest.mark.slow
def test_a_soup_is_tested_and_put_beside_its_parts(command: Command, small_run: Path, tmp_path: Path) -> None:
    shutil.copytree(small_run, tmp_path / "sweep" / "0")
    shutil.copytree(small_run, tmp_path / "sweep" / "1")
    done = command("export", "soup=[sweep]", "soup_method=greedy", "verify=false", "hydra.run.dir=out", cwd=tmp_path)
    table = json.loads((tmp_path / "out/soup.json").read_text())
    metrics = json.loads((small_run / "metrics.json").read_text())
    assert [Path(member).name for member in table["members"]] == ["0", "1"]
    for losses in (table["soup"], *table["losses"].values()):
        assert losses["test/response_loss"] == pytest.approx(metrics["test/response_loss"], abs=1e-4)
        assert losses["val/response_loss"] == pytest.approx(metrics["val/response_loss"], abs=1e-4)
    assert done.stdout.count("+ sweep/") == 2 and "the soup: val/response_loss" in done.stdout
    assert "answers of the soup" not in done.stdout and "answers of the soup: 100% 10/10" in done.stderr
    assert "HYDRA" not in done.stdout + done.stderr, "libraries' own lines, with a folder that is renamed"
    assert (tmp_path / "out/responses.jsonl").read_text().count("\n") == 10
    before, after = open_model(small_run), open_model(tmp_path / "out/hf")
    assert torch.equal(before.model(IDS), after.model(IDS))
    card = (tmp_path / "out/hf/README.md").read_text()
    assert "\n| exact_match |" in card and "average of those of 2 of 2 runs (a greedy soup" in card


def test_gguf_and_modelfile(command: Command, small_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    done = command(
        "export", f"run={small_run}", "to=gguf", "precision=q8_0", "verify=false", "hydra.run.dir=out", cwd=tmp_path
    )
    assert "Modelfile, README.md, model-q8_0.gguf" in done.stdout and done.stderr == ""
    text = (tmp_path / "out/gguf/Modelfile").read_text()
    assert (
        text.startswith("FROM ./model-q8_0.gguf\n")
        and "### Instruction:\n{{ .Content }}\n\n### Response:\n{{ end }}" in text
    )


@pytest.mark.slow
def test_a_traced_program_gives_our_logits(command: Command, small_run: Path, tmp_path: Path) -> None:
    done = command("export", f"run={small_run}", "to=torch_export", "hydra.run.dir=out", cwd=tmp_path)
    assert "gives the same losses, prompts and answers in torch.export" in done.stdout
    program = torch.export.load(tmp_path / "out/torch_export/model.pt2").module()
    model = open_model(small_run).model.eval()
    for shape in ((1, 1), (3, 96)):
        ids = torch.randint(0, 50257, shape, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(program(ids), model(ids), rtol=0, atol=1e-5)


def test_errors_are_reported_together(command: Command, tmp_path: Path) -> None:
    done = command("export", "run=nowhere", "to=onyx", "precision=q4", "push_to_hub=me", cwd=tmp_path, status=2)
    assert done.stderr.splitlines() == [
        "error: run=nowhere: no such folder (a run folder, a bundle or a Hugging Face directory)",
        "  to=onyx: allowed are hf, gguf, torch_export",
        "  precision=q4: allowed are f32, f16, bf16, q8_0, q4_k_m, q5_k_m",
        "  push_to_hub=me: give the full name of the repository, owner/name",
    ]


class Hub(BaseHTTPRequestHandler):
    """The hub's side of an upload: what was asked, and the files that came."""

    asked: ClassVar[list[str]] = []
    created: ClassVar[dict[str, Any]] = {}
    files: ClassVar[dict[str, bytes]] = {}
    status, is_private = 200, True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.asked.append(self.path)
        answer: dict[str, Any] = {"errors": [], "warnings": []}
        if self.path == "/api/repos/create":
            self.created.update(json.loads(body))
            answer = {"url": "http://127.0.0.1/me/x"}
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            answer = {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
        elif "/commit/" in self.path:
            rows = [json.loads(line) for line in body.splitlines()]
            self.files.update(
                (r["value"]["path"], b64decode(r["value"]["content"])) for r in rows if r["key"] == "file"
            )
            answer = {"commitUrl": "http://127.0.0.1/me/x/commit/1", "commitOid": "1", "hookOutput": ""}
        self._answer(answer)

    def do_GET(self) -> None:
        self._answer({"id": "me/x", "sha": "1", "siblings": [], "private": self.is_private})

    def _answer(self, answer: dict[str, Any]) -> None:
        text = json.dumps(answer).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *parts: object) -> None: ...


def test_the_folder_is_uploaded_to_a_private_repository_after_a_yes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = {"README.md": b"---\nlicense: mit\n---\n# m\n", "config.json": b"{}", "model.safetensors": b"\0\1"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    with pytest.raises(ConfigError, match=r"push_to_hub=me/x: not uploaded, since no program has verified"):
        push(tmp_path, "me/x", True, verified=False)
    with pytest.raises(ConfigError, match=r"push_to_hub=me/x: not uploaded, since nobody said yes"):
        push(tmp_path, "me/x", True, verified=True)  # no terminal, nobody to ask
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    with pytest.raises(ConfigError, match=r"since nobody said yes"):
        push(tmp_path, "me/x", True, verified=True)
    assert Hub.asked == [] and f"me/x will get everything in {tmp_path} (private)" in capsys.readouterr().out
    monkeypatch.setattr("builtins.input", lambda question: "yes")
    assert "me/x" in push(tmp_path, "me/x", True, verified=True)
    assert "validate" in Hub.asked[0] and Hub.asked[1] == "/api/repos/create"
    assert (Hub.created["organization"], Hub.created["name"]) == ("me", "x")
    assert Hub.created.get("visibility") == "private" or Hub.created["private"] is True
    assert Hub.files == contents
    monkeypatch.setattr(Hub, "is_private", False)
    Hub.files.clear()
    with pytest.raises(
        ConfigError, match=r"push_to_hub=me/x: not uploaded, since it exists and is public; give private=false"
    ):
        push(tmp_path, "me/x", True, verified=True)
    assert Hub.files == {} and "me/x" in push(tmp_path, "me/x", False, verified=True) and Hub.files == contents
    for status, first in (
        (401, "log in with 'hf auth login', then"),
        (409, "later:"),
        (429, "later:"),
        (500, "later:"),
    ):
        monkeypatch.setattr(Hub, "status", status)
        with pytest.raises(ConfigError) as caught:
            push(tmp_path, "me/x", True, verified=True)
        reason = f"push_to_hub=me/x: not uploaded (status {status}: "
        assert str(caught.value).startswith(reason), caught.value
        assert str(caught.value).endswith(f"); {first} hf upload me/x {tmp_path} . --private")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"not uploaded \(ConnectError: .*\); later: hf upload me/x .* --private"):
        push(tmp_path, "me/x", True, verified=True)
    monkeypatch.setattr("builtins.input", no_answer)
    with pytest.raises(ConfigError, match=r"since nobody said yes"):
        push(tmp_path, "me/x", True, verified=True)  # Ctrl-D
    server.shutdown()
    server.server_close()


def no_answer(question: str) -> str:
    raise EOFError
