"""What identifies a streamed data set: its contents, and the commit on the hub."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.records import FileSource
from instruct_lit.datasets.stream_datamodule import HeldOut, quick_fingerprint
from instruct_lit.datasets.stream_hub_source import StreamingHubSource, sampled_digest
from instruct_lit.errors import DownloadError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_the_same_records_in_another_order_are_other_held_out_examples(tmp_path: Path) -> None:
    records = [json.dumps({"instruction": f"{n:03}", "output": "x"}) for n in range(50)]
    file = tmp_path / "r.jsonl"
    file.write_text("\n".join(records))
    before = quick_fingerprint(FileSource(str(file)))
    file.write_text("\n".join(records[::-1]))  # the same name and size
    assert quick_fingerprint(FileSource(str(file))) != before
    one, two = Example("a", "b"), Example("c", "d")
    keys = {HeldOut("val", examples, "facts").fingerprint() for examples in ([one, two], [two, one], [one])}
    assert len(keys) == 3


def test_pieces_of_a_large_file_stand_for_it(tmp_path: Path) -> None:
    file = tmp_path / "large"
    content = bytearray(4 << 20)
    digests = set()
    for change in (0, 1 << 20, 4 << 19, (4 << 20) - (1 << 18)):
        content[change] += 1
        file.write_bytes(content)
        digests.add(sampled_digest(file))
    assert len(digests) == 4
    (tmp_path / "empty").write_bytes(b"")
    assert sampled_digest(tmp_path / "empty") not in digests


def test_a_hub_set_is_pinned_to_the_commit_that_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    import huggingface_hub

    asked: list[Any] = []
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, repo, revision: SimpleNamespace(sha=COMMIT))
    monkeypatch.setattr(
        datasets, "load_dataset", lambda repo, subset, **options: asked.append(options) or SimpleNamespace(num_shards=2)
    )
    source = StreamingHubSource("owner/name")
    assert source.shards() == [0, 1] and asked == [{"split": "train", "revision": COMMIT, "streaming": True}]
    first = source.fingerprint()
    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda self, repo, revision: SimpleNamespace(sha=COMMIT[::-1])
    )
    assert source.fingerprint() == first != StreamingHubSource("owner/name").fingerprint()


def test_a_hub_without_the_data_set_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match=r"data set owner/name, split train: cannot be opened \("):
        StreamingHubSource("owner/name").fingerprint()
