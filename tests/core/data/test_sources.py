"""Sources of files: what they yield, skip and count, and when their fingerprint changes."""

import json
from pathlib import Path

import pytest

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.sources import FileSource, HubSource, UrlSource, deduplicated
from instruct_lit.errors import DataError, DownloadError


def write(path: Path, *records: object) -> Path:
    path.write_text(json.dumps(list(records)))
    return path


GOOD = {"instruction": "a", "output": "b"}
BAD = {"instruction": "a", "output": ""}


def test_files_and_folders_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "2.json", {"instruction": "2", "output": "x"})
    write(folder / "1.json", {"instruction": "1", "output": "x"})
    (folder / "notes.txt").write_text("no records")
    last = write(tmp_path / "z.json", {"instruction": "3", "output": "x"})
    assert [e.instruction for e in FileSource([str(folder), str(last)])] == ["1", "2", "3"]


def test_a_bad_record_is_an_error_with_its_place_or_skipped_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", GOOD, BAD, GOOD)
    with pytest.raises(DataError, match=r"r.json, record 1: 'output' is empty"):
        list(FileSource(str(path)))
    source = FileSource(str(path), on_bad_record="skip")
    assert len(list(source)) == 2 and source.n_skipped == 1
    assert len(list(source)) == 2 and source.n_skipped == 1  # counted anew each time


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        list(FileSource(str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match="no file ending in .json, .jsonl, .csv, .parquet in this folder"):
        list(FileSource(str(tmp_path)))


def test_the_fingerprint_follows_content_and_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", GOOD)
    first = FileSource(str(path)).fingerprint()
    assert FileSource(str(path)).fingerprint() == first
    assert FileSource(str(path), {"instruction": "q"}).fingerprint() != first
    write(path, GOOD, GOOD)
    assert FileSource(str(path)).fingerprint() != first


def test_exact_duplicates_are_dropped_and_counted() -> None:
    examples = [Example("a", "b"), Example("a", "b", "c"), Example("a", "b"), Example("ab", "")]
    unique = deduplicated(examples)
    assert list(unique) == [examples[0], examples[1], examples[3]] and unique.n_dropped == 1


def test_a_local_path_takes_the_place_of_the_download(tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", GOOD)
    url = UrlSource("http://127.0.0.1:9/x.json", str(tmp_path), path=str(path))
    hub = HubSource("owner/name", str(tmp_path), path=str(path))
    assert len(list(url)) == len(list(hub)) == 1


def test_a_hub_that_cannot_be_reached_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DownloadError, match=r"data set owner/name cannot be fetched from the Hugging Face hub .*data=demo"
    ):
        list(HubSource("owner/name", str(tmp_path)))


def test_a_name_that_is_no_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"data.source.repo=a/b/c: Repo id must be in the form"):
        list(HubSource("a/b/c", str(tmp_path)))


def test_a_file_is_fetched_when_it_is_first_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked = write(tmp_path / "r.json", GOOD), []
    monkeypatch.setattr("instruct_lit.core.data.sources.fetch", lambda *arguments: asked.append(arguments) or path)
    source = UrlSource("http://x/r.json", str(tmp_path), "sum")
    assert not asked
    source.prepare()
    assert len(list(source)) == 1 and source.fingerprint() and source.shards() == [path]
    assert asked == [("http://x/r.json", tmp_path / "downloads", "sum")]
