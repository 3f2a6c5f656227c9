"""Where the numbers of a run come from: `provenance.json` in its folder."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from instruct_lit import __version__
from instruct_lit.errors import ConfigError

FILE = "provenance.json"
LIBRARIES = (
    "torch",
    "lightning",
    "hydra-core",
    "omegaconf",
    "tiktoken",
    "safetensors",
    "numpy",
    "transformers",
    "peft",
)


def provenance(
    command: Sequence[str],
    changed: Sequence[tuple[str, Any, Any]],
    data: Mapping[str, Any],
    model: torch.nn.Module,
    split_file: Path,
    device: torch.device,
    precision: str,
    seeds: Mapping[str, int],
) -> dict[str, Any]:
    """What must be known to start the run again and to trust the comparison.

    `changed` are (key, default, value) of the configuration; `model` has the weights as loaded, before any training.
    """
    return {
        "command": list(command),
        "changed": {key: {"default": default, "value": value} for key, default, value in changed},
        "code": {"version": __version__, **code_state(Path(__file__).resolve().parents[2])},
        "data": dict(data),
        "split_sha256": hashlib.sha256(split_file.read_bytes()).hexdigest(),
        "weights_sha256": weights_sha256(model),
        "seeds": dict(seeds),
        "device": {
            "type": device.type,
            "name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
            "precision": precision,
            "n_threads": torch.get_num_threads(),
            "n_processes": int(os.environ.get("WORLD_SIZE", "1")),
        },
        "versions": versions(),
    }


def code_state(folder: Path) -> dict[str, Any]:
    """The git commit of a checkout and whether files differ from it; empty where the package is installed."""
    if not (folder / ".git").exists():
        return {}
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):  # no git, or not a checkout of ours
        return {}


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def weights_sha256(model: torch.nn.Module) -> str:
    """The sum over names and bytes of all parameters and buffers that are saved, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Of Python, the system, and those libraries that are installed."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def read_provenance(run: Path) -> dict[str, Any]:
    """The provenance of a run folder. Raises ConfigError when it has none or it is damaged."""
    file = run / FILE
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"run={run}: no {FILE} there; a folder that train wrote has one") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: damaged ({type(error).__name__}: {error})") from error


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """What two provenances disagree about besides the command: (what, there, here), nested keys joined with a dot."""
    left, right = _leaves(there), _leaves(here)
    keys = [key for key in {**left, **right} if key.split(".")[0] not in ("command", "changed")]
    return [(key, left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)]


def _leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix.removesuffix("."): node}
    return {k: v for key, value in node.items() for k, v in _leaves(value, f"{prefix}{key}.").items()}


def write_provenance(run: Path, found: Mapping[str, Any]) -> None:
    """Write it before the long work, so that a run that breaks has it too."""
    (run / FILE).write_text(json.dumps(found, indent=2, default=str) + "\n", encoding="utf-8")
