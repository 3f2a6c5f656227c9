"""The provenance of a run: command, code, data, weights, device and versions, in `provenance.json`."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from instruct_lit import __version__
from instruct_lit.config.compose import flat
from instruct_lit.core.data.tokenizer import Tokenizer
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.training.run import Run
from instruct_lit.errors import ConfigError

FILE = "provenance.json"
LIBRARIES = (
    "torch", "lightning", "hydra-core", "omegaconf", "tiktoken", "safetensors", "numpy", "transformers", "peft",
)  # fmt: skip


def provenance(
    command: Sequence[str], changed: Sequence[tuple[str, Any, Any]], run: Run, seeds: Mapping[str, int]
) -> dict[str, Any]:
    """What it takes to run a training again and to trust the comparison.

    Args:
        changed: (key, default, value) of the configuration.
        run: prepared, so that its data are known and its split is saved.
        seeds: by their keys.
    """
    device = run.trainer.strategy.root_device
    return {
        "command": list(command),
        "changed": {key: {"default": default, "value": value} for key, default, value in changed},
        "code": {"version": __version__, **code_state(Path(__file__).resolve().parents[2])},
        "data": dict(run.about["data"]),
        "split_sha256": hashlib.sha256((run.run_dir / "split.json").read_bytes()).hexdigest(),
        "weights_sha256": "",  # by `write_provenance`
        "seeds": dict(seeds),
        "device": {
            "type": device.type,
            "name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
            "precision": run.trainer.precision,
            "n_threads": torch.get_num_threads(),
            "n_processes": int(os.environ.get("WORLD_SIZE", "1")),
        },
        "versions": versions(),
    }


def code_state(folder: Path) -> dict[str, Any]:
    """The git commit of a checkout and whether tracked files differ from it; empty for an installed package."""
    if not (folder / ".git").exists():
        return {}
    try:
        describe = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(describe, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):  # git is missing, or the folder belongs to someone else
        return {}
    commit, _, dirty = done.stdout.strip().partition("-")
    return {"commit": commit, "dirty": bool(dirty)}


def weights_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the names and bytes of all saved parameters and buffers, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
    return digest.hexdigest()


def answer_key(model: CausalLM, tokenizer: Tokenizer) -> str:
    """The name of a cache of a model's answers: a hash of weights, configuration, tokenizer and our version."""
    own = getattr(getattr(model, "hf", None), "config", None)  # such as the rotary base, which no weight shows
    settings = {} if own is None else {k: v for k, v in own.to_dict().items() if not k.startswith("_")}
    facts = [__version__, weights_sha256(model.state_dict()), repr(model.config), settings, tokenizer.fingerprint]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of Python, the system and the installed libraries."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def processor() -> str:
    """The model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def read_provenance(run: Path) -> dict[str, Any]:
    """The provenance of a run folder.

    Raises: ConfigError when it is missing or damaged.
    """
    file = run / FILE
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"run={run}: no {FILE}; give a run folder of python -m instruct_lit.train") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: damaged ({type(error).__name__}: {error}); give another run") from error


def differing(original: Mapping[str, Any], rerun: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The differences of two provenances besides the command: (dotted key, original, rerun)."""
    left, right = flat(original), flat(rerun)
    keys = [key for key in {**left, **right} if key.split(".")[0] not in ("command", "changed")]
    return [(key, left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)]


def write_provenance(run: Path, found: dict[str, Any], state: Mapping[str, torch.Tensor]) -> None:
    """Write `provenance.json`, with the checksum of the weights, before training, so that a run that fails has it."""
    found["weights_sha256"] = weights_sha256(state)
    (run / FILE).write_text(json.dumps(found, indent=2, default=str) + "\n", encoding="utf-8")
