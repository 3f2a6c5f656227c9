"""A folder with files of its own for training, validation and test is read as that."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from instruct_lit.config.data_builders import own_splits
from instruct_lit.core.data.records import FileSource
from instruct_lit.datasets.folder_splits import separate_splits, unread_files
from instruct_lit.datasets.remote_sources import HubSource
from instruct_lit.errors import DataError


def folder(root: Path, *names: str) -> Path:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"instruction": name, "output": "x"}) + "\n")
    return root


def instructions(source: FileSource) -> list[str]:
    return [example.instruction for example in source]


@pytest.mark.parametrize(
    ("names", "train", "val", "test"),
    [
        (["train.jsonl", "validation.jsonl", "test.jsonl"], ["train.jsonl"], ["validation.jsonl"], ["test.jsonl"]),
        (["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test-00000-of-00001.jsonl"],
         ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"], [], ["data/test-00000-of-00001.jsonl"]),
        (["train/a.jsonl", "dev/a.jsonl"], ["train/a.jsonl"], ["dev/a.jsonl"], []),
        (["my_training.jsonl", "my_eval.jsonl"], ["my_training.jsonl"], ["my_eval.jsonl"], []),
        (["trainset.jsonl", "valdata.jsonl", "TestSet.jsonl"], ["trainset.jsonl"], ["valdata.jsonl"], ["TestSet.jsonl"]),
        (["trn.jsonl", "holdout.jsonl", "held_out2.jsonl"], ["trn.jsonl"], [], ["held_out2.jsonl", "holdout.jsonl"]),
        (["latest.jsonl", "contest.jsonl"], ["contest.jsonl", "latest.jsonl"], [], []),  # "test" is no word of them
        (["test.jsonl"], ["test.jsonl"], [], []),
        (["train_a.jsonl", "b.jsonl"], ["b.jsonl", "train_a.jsonl"], [], []),
    ],
)  # fmt: skip
def test_the_names_of_the_files_say_their_part(
    tmp_path: Path, names: list[str], train: list[str], val: list[str], test: list[str]
) -> None:
    source = FileSource(str(folder(tmp_path, *names)))
    others = separate_splits(source)
    assert instructions(source) == train
    assert {name: instructions(other) for name, other in others.items()} == {
        name: files for name, files in (("val", val), ("test", test)) if files
    }
    assert all(other.name == f"files_{name}" for name, other in others.items())


def test_a_file_of_no_part_beside_files_of_parts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"files for training and others for evaluation, and other.jsonl is neither"):
        separate_splits(FileSource(str(folder(tmp_path, "train.jsonl", "test.jsonl", "other.jsonl"))))


def test_files_that_are_named_one_by_one_are_one_set(tmp_path: Path) -> None:
    folder(tmp_path, "train.jsonl", "test.jsonl")
    assert separate_splits(FileSource([str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")])) == {}


def test_a_downloaded_data_set_has_its_own_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [p for p in sorted(folder(tmp_path, "data/train.jsonl", "data/test.jsonl").rglob("*")) if p.is_file()]
    monkeypatch.setattr("instruct_lit.datasets.remote_sources.fetch_data_set", lambda *arguments: files)
    source = HubSource("owner/name", str(tmp_path))
    others = separate_splits(source)
    assert instructions(source) == ["data/train.jsonl"] and instructions(others["test"]) == ["data/test.jsonl"]


def test_files_in_no_known_form_are_named(tmp_path: Path) -> None:
    names = ["a.jsonl", "b.jsonl.bz2", "sub/c.txt", ".hidden.txt", ".git/d.txt", "dataset_info.json"]
    assert unread_files(FileSource(str(folder(tmp_path, *names)))) == ["b.jsonl.bz2", "sub/c.txt"]
    assert unread_files(FileSource(str(tmp_path / "a.jsonl"))) == []


def test_a_separate_file_replaces_that_of_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = FileSource(str(folder(tmp_path, "train.jsonl", "val.jsonl", "test.jsonl", "notes.txt")))
    given = {"name": "files", "sets": None, "val_path": "other.jsonl", "test_path": None}
    assert set(own_splits({"files": source}, OmegaConf.create({"data": given}))) == {"val", "test"}
    assert capsys.readouterr().out.splitlines() == [
        "data files: files in its folder that are not read: notes.txt",
        "data files: data.val_path replaces the data set's own files for val",
        "data files: the data set's own files are used for test",
    ]


def test_hidden_files_and_descriptions_of_a_data_set_are_no_records(tmp_path: Path) -> None:
    names = ["a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "._a.jsonl", "dataset_info.json", "sub/.b.jsonl"]
    assert instructions(FileSource(str(folder(tmp_path, *names)))) == ["a.jsonl"]
    hidden = folder(tmp_path / ".cache" / "set", "a.jsonl")  # a folder below a hidden one is the user's choice
    assert instructions(FileSource(str(hidden))) == ["a.jsonl"]
