"""GPT-2 weights in and out, in Hugging Face's layout: a local directory, the hub, or the base that is shipped."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from instruct_lit.core.model.gpt import GPT, INIT_STD, GPTConfig
from instruct_lit.errors import CheckpointError, DownloadError

WEIGHTS = "model.safetensors"
PICKLED = "pytorch_model.bin"
_AGAIN = "; if it was downloaded, delete it, and the next run fetches it again"
# Our names, Hugging Face's names, and whether theirs is a Conv1D, which stores (in, out).
_IN_BLOCK = {
    "ln_1": ("ln_1", False),
    "attn.qkv": ("attn.c_attn", True),
    "attn.proj": ("attn.c_proj", True),
    "ln_2": ("ln_2", False),
    "mlp.fc": ("mlp.c_fc", True),
    "mlp.proj": ("mlp.c_proj", True),
}
_CONFIG_KEYS = {
    "n_vocab": "vocab_size",
    "context_length": "n_positions",
    "d_model": "n_embd",
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "layer_norm_eps": "layer_norm_epsilon",
}
# What a GPT-2 config may not say, because this GPT does not do it: key and the one value that is supported.
_FIXED = {
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "tie_word_embeddings": True,
}


def load_gpt(
    path: str | Path | None = None,
    repo: str | None = None,
    revision: str | None = None,
    pretrained: bool = True,
    config: GPTConfig | None = None,
    dropout: float = 0.0,
    activation_checkpointing: bool = False,
    seed: int = 0,
    cache_dir: Path | None = None,
) -> GPT:
    """Build a GPT: with the weights of a directory (`path`) or of a hub repository, or with random ones.

    A directory or repository brings its own shape; `config` is the shape of random weights (`pretrained=False`) where
    no `path` is given. Raises CheckpointError and DownloadError as `find_weights` and `load_weights` do.
    """
    directory = find_weights(path, repo, revision, cache_dir) if pretrained or path is not None else None
    shape = read_config(directory) if directory is not None else config or GPTConfig()
    with torch.device("meta"):  # every weight is written below, so torch need not draw them first
        model = GPT(shape, dropout, activation_checkpointing)
    model.to_empty(device="cpu")
    if pretrained and directory is not None:
        load_weights(model, directory)
    else:
        model.init_weights(seed)
    return model


def find_weights(
    path: str | Path | None, repo: str | None, revision: str | None = None, cache_dir: Path | None = None
) -> Path:
    """Return a directory with `config.json` and weights: a local one, or a hub repository's.

    Raises CheckpointError when a local directory has no `config.json`, DownloadError when the hub cannot be reached.
    """
    if path is not None:
        directory = Path(path).expanduser()
        if (directory / "bundle" / "config.json").is_file():  # a run folder
            directory = directory / "bundle"
        if not (directory / "config.json").is_file():
            raise CheckpointError(f"model.path={path}: no config.json there; give a bundle or a Hugging Face directory")
        return directory
    assert repo is not None, "a model has a path or a repository"
    return _from_hub(repo, revision, cache_dir)


def _from_hub(repo: str, revision: str | None, cache_dir: Path | None) -> Path:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    for name in ("config.json", WEIGHTS):
        try:
            cached = try_to_load_from_cache(repo, name, cache_dir, revision)
            file = Path(hf_hub_download(repo, name, revision=revision, cache_dir=cache_dir))
        except Exception as error:  # the hub's client lets errors of its HTTP library through
            cause = next((e for e in (error.__cause__, error.__context__) if e is not None), error)
            by_hand = Path(cache_dir or constants.HF_HUB_CACHE) / repo.rpartition("/")[2]
            raise DownloadError(
                f"model {repo}, revision {(revision or 'main')[:12]}: {name} not fetched from {constants.ENDPOINT} "
                f"({type(cause).__name__}: {_first_line(cause)[:40]}); offline: model.path={by_hand} with config.json "
                f"and {WEIGHTS} in it, or model=nano data=demo"
            ) from error
        if str(file) != cached:
            _check_sum(file, repo)
    return file.parent


def _check_sum(file: Path, repo: str) -> None:
    """Refuse and remove a fetched file whose bytes are not those that the hub announced.

    The hub's client checks the size alone; it names large files by their sha256.
    """
    blob = file.resolve()
    if not re.fullmatch("[0-9a-f]{64}", blob.name):
        return
    with blob.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != blob.name:
        file.unlink()
        blob.unlink(missing_ok=True)
        raise DownloadError(
            f"model {repo}: {file.name} came with sha256 {found}, the hub announced {blob.name}; removed, try again"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no message"])[0]


def read_config(directory: Path) -> GPTConfig:
    """Read the shape out of a GPT-2 `config.json`; CheckpointError names what is missing or not supported."""
    file = directory / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON ({error}){_AGAIN}") from error
    if not isinstance(values, dict) or values.get("model_type") != "gpt2":
        found = repr(values.get("model_type")) if isinstance(values, dict) else f"that of a {type(values).__name__}"
        raise CheckpointError(f"{file}: model_type is {found}; only 'gpt2' can be loaded")
    problems = [
        f"{key}={values[key]!r} (supported: {supported!r})"
        for key, supported in _FIXED.items()
        if values.get(key, supported) != supported
    ]
    shape: dict[str, Any] = {}
    for ours, theirs in _CONFIG_KEYS.items():
        value = values.get(theirs, values.get("n_ctx") if theirs == "n_positions" else None)
        number = float if theirs == "layer_norm_epsilon" else int
        if value is None and number is int:
            problems.append(f"{theirs} is missing")
        elif value is not None and (type(value) is not number or value <= 0):
            problems.append(f"{theirs}={value!r} (supported: a positive {number.__name__})")
        elif value is not None:
            shape[ours] = value
    if not problems and values.get("n_inner") not in (None, 4 * shape["d_model"]):
        problems.append(f"n_inner={values['n_inner']!r} (supported: null or 4 · n_embd)")
    if not problems and shape["d_model"] % shape["n_heads"]:
        problems.append(f"n_embd={shape['d_model']} is no multiple of n_head={shape['n_heads']}")
    if problems:
        raise CheckpointError(f"{file}: {'; '.join(problems)}")
    return GPTConfig(**shape)


def hf_config(config: GPTConfig) -> dict[str, Any]:
    """The `config.json` that transformers reads for a model of this shape."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{theirs: getattr(config, ours) for ours, theirs in _CONFIG_KEYS.items()},
        "n_ctx": config.context_length,
        "n_inner": None,
        **_FIXED,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "initializer_range": INIT_STD,
    }


def hf_names(config: GPTConfig) -> dict[str, tuple[str, bool]]:
    """Our parameter names, each with Hugging Face's and whether the matrix is transposed there."""
    names = {"wte.weight": ("wte.weight", False), "wpe.weight": ("wpe.weight", False)}
    for layer in range(config.n_layers):
        for ours, (theirs, conv1d) in _IN_BLOCK.items():
            for kind in ("weight", "bias"):
                transposed = conv1d and kind == "weight"
                names[f"blocks.{layer}.{ours}.{kind}"] = (f"h.{layer}.{theirs}.{kind}", transposed)
    for kind in ("weight", "bias"):
        names[f"ln_f.{kind}"] = (f"ln_f.{kind}", False)
    return names


@torch.no_grad()
def load_weights(model: GPT, directory: Path) -> None:
    """Copy the weights of a Hugging Face GPT-2 directory into the model.

    Reads safetensors, or `pytorch_model.bin` with `weights_only=True`; nothing is unpickled. Raises CheckpointError
    that lists every missing, unexpected and misshaped tensor, or says that the file is damaged.
    """
    file, tensors = _read_tensors(directory)
    parameters = dict(model.named_parameters())
    problems = []
    head = tensors.pop("lm_head.weight", None)
    if head is not None and "wte.weight" in tensors and not torch.equal(head, tensors["wte.weight"]):
        problems.append("lm_head.weight differs from wte.weight, but GPT-2's head is tied")
    for name, (theirs, transposed) in hf_names(model.config).items():
        parameter, tensor = parameters[name], tensors.pop(theirs, None)  # popped, so that memory is not needed twice
        wanted = tuple(parameter.shape)[::-1] if transposed else tuple(parameter.shape)
        if tensor is None:
            problems.append(f"{theirs} is missing")
        elif tuple(tensor.shape) != wanted:
            problems.append(f"{theirs} has shape {tuple(tensor.shape)}, expected {wanted}")
        elif not tensor.is_floating_point():
            problems.append(f"{theirs} holds {tensor.dtype}, expected floating-point numbers")
        else:
            parameter.copy_(tensor.t() if transposed else tensor)
    problems += [f"{name} is not a tensor of this model" for name in tensors]
    if problems:
        raise CheckpointError(f"{file}: the weights do not fit:\n  " + "\n  ".join(problems))


def _read_tensors(directory: Path) -> tuple[Path, dict[str, Tensor]]:
    file = next((directory / name for name in (WEIGHTS, PICKLED) if (directory / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{directory}: neither {WEIGHTS} nor {PICKLED} is there")
    try:
        if file.name == WEIGHTS:
            tensors = load_file(file)
        else:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes can fail in any way
        raise CheckpointError(f"{file}: damaged or no weights file ({_first_line(error)}){_AGAIN}") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(n, str) and isinstance(t, Tensor) for n, t in tensors.items()
    ):
        raise CheckpointError(f"{file}: holds something else than named tensors")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    # Constant causal masks that old checkpoints carry along.
    return file, {name: t for name, t in tensors.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))}


def hf_state_dict(model: GPT, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The model's weights under Hugging Face's names; the tied head is not stored twice."""
    parameters = dict(model.named_parameters())
    return {
        f"transformer.{theirs}": (parameters[ours].detach().t() if transposed else parameters[ours].detach())
        .to("cpu", dtype)
        .contiguous()
        for ours, (theirs, transposed) in hf_names(model.config).items()
    }
