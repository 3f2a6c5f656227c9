"""Sources that are downloaded, and what replaces the download."""

import hashlib
import json
from pathlib import Path

import pytest

from instruct_lit.datasets.remote_sources import HubSource, UrlSource
from instruct_lit.datasets.stream_hub_source import StreamingHubSource
from instruct_lit.errors import DownloadError


def records(path: Path) -> Path:
    path.write_text(json.dumps([{"instruction": "a", "output": "b"}]))
    return path


def test_a_local_path_takes_the_place_of_the_download(tmp_path: Path) -> None:
    path = records(tmp_path / "r.json")
    url = UrlSource("http://127.0.0.1:9/x.json", str(tmp_path), path=str(path))
    hub = HubSource("owner/name", str(tmp_path), path=str(path))
    assert len(list(url)) == len(list(hub)) == 1


def test_a_hub_that_cannot_be_reached_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DownloadError, match=r"data set owner/name: cannot be downloaded from the Hugging Face hub .*data=demo"
    ):
        list(HubSource("owner/name", str(tmp_path)))


def test_a_connection_that_fails_in_any_way_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        DownloadError, match=r"data set owner/name, split train: cannot be opened \(ConnectError: .*ref"
    ):
        _ = StreamingHubSource("owner/name").commit

    def interrupted(*arguments: object, **options: object) -> None:
        raise RuntimeError("peer closed connection")  # an error of an HTTP library is of no class of the hub's

    monkeypatch.setattr("huggingface_hub.snapshot_download", interrupted)
    with pytest.raises(
        DownloadError, match=r"owner/name: cannot be downloaded from the Hugging Face hub \(RuntimeError"
    ):
        list(HubSource("owner/name", str(tmp_path)))


def test_a_name_that_is_no_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"data.source.repo=a/b/c: Repo id must be in the form"):
        list(HubSource("a/b/c", str(tmp_path)))


def test_a_file_is_fetched_when_it_is_first_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked = records(tmp_path / "r.json"), []
    monkeypatch.setattr(
        "instruct_lit.datasets.remote_sources.fetch", lambda *arguments: asked.append(arguments) or path
    )
    source = UrlSource("http://x/r.json", str(tmp_path), "sum")
    assert not asked
    assert source.shards() == [path] and len(list(source)) == 1 and source.fingerprint()
    assert asked == [("http://x/r.json", tmp_path / "downloads", "sum")]


def test_wrong_bytes_of_a_data_set_are_refused_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b'[{"instruction": "a", "output": "b"}]'
    blob, snapshot = tmp_path / "blobs" / hashlib.sha256(content).hexdigest(), tmp_path / "snapshots" / "0"
    blob.parent.mkdir()
    snapshot.mkdir(parents=True)

    def downloaded(*arguments: object, **options: object) -> str:
        if not blob.exists():
            blob.write_bytes(sent)
            (snapshot / "train.json").symlink_to(blob)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", downloaded)
    sent = content.replace(b"b", b"c")  # of the same size
    with pytest.raises(DownloadError, match=r"^data set me/set: train.json has sha256 .*removed, try again$"):
        list(HubSource("me/set", str(tmp_path)))
    sent = content
    assert [example.output for example in HubSource("me/set", str(tmp_path))] == ["b"]
    assert len(list(HubSource("me/set", str(tmp_path)))) == 1, "and read from the cache"
