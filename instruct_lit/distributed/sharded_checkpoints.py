"""Tensors of a checkpoint in a folder of their own: each process writes its share, as safetensors (torch's DCP).

The folder has a unique name, and is used only after a checkpoint file names it, so that an interrupted write leaves
the previous checkpoint intact.
"""

import shutil
import uuid
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

SUFFIX = ".shards"
WEIGHTS, MOMENTS = "state_dict", "optimizer_states"  # keys of a checkpoint whose tensors are in shards


def new_folder(path: Path, step: int) -> Path:
    """Create the folder for the tensors of the checkpoint that will be written to `path`."""
    folder = path.with_name(f"{path.stem}-{step}-{uuid.uuid4().hex[:8]}{SUFFIX}")
    folder.mkdir(parents=True)
    return folder


def write(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write tensors, synced; all processes call it, each with its share. Raises the error of one of them in all."""
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    failed = None
    try:
        dcp.save(_unshared(tensors), storage_writer=writer)
    except CheckpointException as error:
        failed, _ = next(iter(error.failures.values()))
    if failed is not None:
        raise failed


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without shared memory: safetensors refuses the two names of a tied matrix otherwise."""
    seen: set[int] = set()
    unshared = {}
    for name, tensor in tensors.items():
        place = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).untyped_storage().data_ptr()
        unshared[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return unshared


def read(folder: str, into: Mapping[str, Tensor]) -> None:
    """Fill tensors, whole ones or this process's shards, in place."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*assuming the intent is to load in a single process")  # it is
        dcp.load(dict(into), storage_reader=dcp.HuggingFaceStorageReader(folder), no_dist=True)


def read_whole(folder: str) -> dict[str, Tensor]:
    """All tensors of a folder, put together."""
    about = dcp.HuggingFaceStorageReader(folder).read_metadata().state_dict_metadata
    whole = {name: torch.empty(t.size, dtype=t.properties.dtype) for name, t in about.items()}  # type: ignore[union-attr]
    read(folder, whole)
    return whole


def check(folder: Path) -> None:
    """Raise OSError if a file of the folder is truncated, or the folder has none."""
    files = list(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder.name} is missing or empty")
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError as error:
            raise OSError(f"{folder.name}/{file.name}: {error}") from error


def remove_others(parent: Path, named: Iterable[str]) -> None:
    """Remove the folders of tensors that no checkpoint names."""
    kept = {Path(folder).name for folder in named}
    for folder in parent.glob(f"*{SUFFIX}"):
        if folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def split_off(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Remove the tensors of weights and moments from a checkpoint, and return them by name."""
    tensors = {f"{WEIGHTS}/{name}": tensor for name, tensor in checkpoint[WEIGHTS].items()}
    checkpoint[WEIGHTS] = {}
    for i, optimizer in enumerate(checkpoint.get(MOMENTS, [])):
        tensors |= moments(optimizer, i)
        optimizer["state"] = {}
    return tensors


def moments(optimizer: Mapping[str, Any], i: int) -> dict[str, Tensor]:
    """The tensors of the i-th optimizer's state, under their names in a folder."""
    return {
        f"{MOMENTS}/{i}/{parameter}/{slot}": value
        for parameter, slots in optimizer["state"].items()
        for slot, value in slots.items()
    }


def put_back(checkpoint: dict[str, Any], folder: str) -> dict[str, Any]:
    """The checkpoint with the whole tensors that `split_off` removed from it."""
    for name, tensor in read_whole(folder).items():
        if name.startswith(f"{WEIGHTS}/"):
            checkpoint[WEIGHTS][name.removeprefix(f"{WEIGHTS}/")] = tensor
        else:
            _, i, parameter, slot = name.split("/")
            checkpoint[MOMENTS][int(i)]["state"].setdefault(int(parameter), {})[slot] = tensor
    return checkpoint
