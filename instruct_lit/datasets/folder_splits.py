"""Folders with files of their own for training, validation and test, in the names that the Hugging Face hub uses."""

import copy
import os
import re
from pathlib import Path

from instruct_lit.core.data.example import listed
from instruct_lit.core.data.records import READERS, FileSource
from instruct_lit.datasets.remote_sources import HubSource
from instruct_lit.errors import DataError

_WORDS = {
    "train": "train|training|trn", "val": "validation|valid|val|dev|eval|evaluation",
    "test": "test|testing|tst|holdout|hold_out|heldout|held_out",
}  # fmt: skip
_WORD = "(?<![a-z])(?:{})(?:set|data)?(?![a-z])"
_PATTERNS = {name: re.compile(_WORD.format(words), re.IGNORECASE) for name, words in _WORDS.items()}


def separate_splits(source: FileSource) -> dict[str, FileSource]:
    """Leave the training files to a source whose folder has such files; sources of the validation and test files.

    Without training files, or with nothing else, all files are one set. The part of a file is in its name, or else in
    the nearest folder's. Raises: DataError for a file that names no part beside files that do.
    """
    is_download = isinstance(source, HubSource) and not source.paths  # of a whole repository
    files = source.shards()
    folders = [path for path in source.paths if path.is_dir()]
    if is_download:
        folders = [Path(os.path.commonpath([file.parent for file in files]))]
    found: dict[str | None, list[Path]] = {}
    for file in files:
        folder = next((path for path in folders if path in file.parents), None)
        found.setdefault(_part_of(file.relative_to(folder)) if folder is not None else "train", []).append(file)
    if not found.get("train") or not {"val", "test"} & set(found):
        return {}
    if None in found:
        others = listed(file.name for file in found[None])
        raise DataError(
            f"data.path: the folder has files for training and others for evaluation, and {others} is neither; rename "
            "it, or name the files in data.path, data.val_path and data.test_path"
        )
    source.paths = found["train"]
    sources: dict[str, FileSource] = {}
    for name in ("val", "test"):
        if name in found:
            sources[name] = copy.copy(source)
            sources[name].paths, sources[name].name = found[name], f"{source.name}_{name}"
    return sources


def unread_files(source: FileSource) -> list[str]:
    """The names of the files in the folders of a source that are in no known form; not of hidden ones."""
    folders = [path for path in source.paths if path.is_dir()]
    files = [path.relative_to(folder) for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    unread = [path for path in files if path.suffix.lower() not in READERS]
    return [str(path) for path in unread if not any(part[0] == "." for part in path.parts)]


def _part_of(path: Path) -> str | None:
    """The part of the split that a file is named after; None when it is named after none."""
    for text in (path.name, *reversed(path.parts[:-1])):
        for name, pattern in _PATTERNS.items():
            if pattern.search(text):
                return name
    return None
