"""Weights from the hub on the real path of huggingface_hub, against a server on 127.0.0.1."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from instruct_lit.core.model.gpt import GPT
from instruct_lit.core.model.pretrained import WEIGHTS, load_gpt
from instruct_lit.errors import CheckpointError, DownloadError
from instruct_lit.hf.hub import download_gpt2

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def load(cache: Path, repo: str = "me/tiny") -> GPT:
    return load_gpt(download_gpt2(repo, COMMIT, cache))


def same(model: GPT, tiny: GPT) -> bool:
    return all(torch.equal(x, y) for x, y in zip(model.parameters(), tiny.parameters(), strict=True))


def test_a_first_run_fetches_and_a_later_one_needs_no_network(hub: Any, tiny: GPT, tmp_path: Path) -> None:
    assert same(load(tmp_path), tiny)
    resolve = f"/me/tiny/resolve/{COMMIT}"
    # The client also asks the hub's own API what it may do; that is not ours to fix.
    fetched = [request for request in hub.requests if request.startswith("GET") and "/api/" not in request]
    assert fetched == [f"GET {resolve}/config.json", f"GET /{hashlib.sha256(hub.files[WEIGHTS]).hexdigest()}"]
    hub.close()
    assert same(load(tmp_path), tiny)


def test_an_interrupted_download_resumes(hub: Any, tiny: GPT, tmp_path: Path) -> None:
    hub.stall_after = 10_000
    hub.go_on.set()  # the store closes at once after these bytes

    def whole_from_now_on(content: bytes) -> bytes:
        if hub.stalled.is_set():
            hub.stall_after = None
        return content

    hub.sent = whole_from_now_on
    assert same(load(tmp_path), tiny)
    store = f"GET /{hashlib.sha256(hub.files[WEIGHTS]).hexdigest()}"
    assert hub.requests.count(store) == 2


@pytest.mark.slow
def test_a_partial_download_of_a_killed_run_is_never_used(hub: Any, tiny: GPT, tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from instruct_lit.hf.hub import download_gpt2; "
        f"download_gpt2('me/tiny', {COMMIT!r}, Path({str(tmp_path)!r}))"
    )
    hub.stall_after = len(hub.files[WEIGHTS]) // 2
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    run = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, **settings})
    try:
        assert hub.stalled.wait(60), "the run asks the endpoint that the environment names"
    finally:
        run.kill()
    assert run.wait() == -signal.SIGKILL
    hub.stall_after = None
    assert same(load(tmp_path), tiny)


def test_wrong_bytes_are_refused_and_removed(hub: Any, tiny: GPT, tmp_path: Path) -> None:
    hub.sent = lambda content: content[:-4] + b"\x00\x00\x80\x7f"  # a plausible number in place of the last weight
    with pytest.raises(DownloadError, match=r"me/tiny: model.safetensors has sha256 .*removed, try again"):
        load(tmp_path)
    hub.sent = lambda content: content
    assert same(load(tmp_path), tiny)


@pytest.mark.parametrize("wrong", [lambda c: c[:-4] + b"\x00\x00\x80\x7f", lambda c: c[:8] + b"[" + c[9:]])
def test_wrong_bytes_of_a_model_of_transformers_are_refused_and_removed(
    hub: Any, tiny: GPT, tmp_path: Path, wrong: Callable[[bytes], bytes]
) -> None:
    pytest.importorskip("transformers")
    from instruct_lit.hf.files import load_hf
    from instruct_lit.hf.source import HFSource

    source = HFSource("me/tiny", revision=COMMIT, cache_dir=tmp_path)
    hub.sent = wrong  # plausible, or no safetensors at all, which would stay in the cache
    with pytest.raises(DownloadError, match=r"^model me/tiny: model.safetensors has sha256 .*removed, try again"):
        load_hf(source)
    hub.sent = lambda content: content
    assert torch.equal(load_hf(source).hf.get_input_embeddings().weight, tiny.wte.weight)


def test_half_a_file_is_refused(hub: Any, tiny: GPT, tmp_path: Path) -> None:
    hub.sent = lambda content: content[: len(content) // 2]
    with pytest.raises(
        DownloadError, match="me/tiny, revision 0123.*: model.safetensors not fetched from .*Consistency"
    ):
        load(tmp_path)
    hub.sent = lambda content: content
    assert same(load(tmp_path), tiny)


def test_a_repository_that_holds_a_damaged_file(hub: Any, tmp_path: Path) -> None:
    hub.files[WEIGHTS] = hub.files[WEIGHTS][:-1]
    with pytest.raises(
        CheckpointError,
        match="model.safetensors: damaged or not a weights file .*delete a downloaded file, and the next run",
    ):
        load(tmp_path)


def test_an_endpoint_that_answers_with_a_page(hub: Any, tmp_path: Path) -> None:
    hub.files["config.json"] = b"<!DOCTYPE html><title>Sign in</title>"
    with pytest.raises(CheckpointError, match="config.json: cannot be read as JSON"):
        load(tmp_path)


def test_no_network(hub: Any, tmp_path: Path) -> None:
    hub.close()
    with pytest.raises(DownloadError) as error:
        load(tmp_path)
    message = str(error.value)
    assert message.startswith(
        f"model me/tiny, revision {COMMIT[:12]}: config.json not fetched from {hub.endpoint} (ConnectError: "
    )
    assert f"offline: model.path={tmp_path}/tiny with config.json and model.safetensors in it" in message
    assert message.endswith("or model=nano data=demo")


def test_a_repository_that_does_not_exist(hub: Any, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="model me/other, revision 0123.*config.json not fetched .*404"):
        load(tmp_path, repo="me/other")


def test_a_repository_name_that_cannot_be(hub: Any, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="model a/b/c, revision"):
        load(tmp_path, repo="a/b/c")
