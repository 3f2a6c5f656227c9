"""GPT-2 weights in and out, in Hugging Face's layout: a local directory, the hub, or the base that is shipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from instruct_lit.errors import CheckpointError, DownloadError
from instruct_lit.model.gpt import GPT, GPTConfig

NANO = Path(__file__).resolve().parent / "nano"
WEIGHTS = "model.safetensors"
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

    `config` is the shape for random weights (`pretrained=False`); weights bring their own. Raises CheckpointError
    and DownloadError as `find_weights` and `load_weights` do.
    """
    if not pretrained and path is None:
        model = GPT(config or GPTConfig(), dropout, activation_checkpointing)
        model.init_weights(seed)
        return model
    directory = find_weights(path, repo, revision, cache_dir)
    shape = read_config(directory)
    model = GPT(shape, dropout, activation_checkpointing)
    if pretrained:
        load_weights(model, directory)
    else:
        model.init_weights(seed)
    return model


def find_weights(
    path: str | Path | None, repo: str | None, revision: str | None = None, cache_dir: Path | None = None
) -> Path:
    """Return a directory with `config.json` and weights: a local one, the shipped `nano`, or a hub repository's."""
    if path is not None:
        directory = NANO if str(path) == "nano" else Path(path).expanduser()
        if (directory / "bundle" / "config.json").is_file():  # a run folder
            directory = directory / "bundle"
        if not (directory / "config.json").is_file():
            raise CheckpointError(f"model.path={path}: no config.json there; give a bundle or a Hugging Face directory")
        return directory
    assert repo is not None, "a model has a path or a repository"
    return _from_hub(repo, revision, cache_dir)


def _from_hub(repo: str, revision: str | None, cache_dir: Path | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        for name in ("config.json", WEIGHTS):
            file = hf_hub_download(repo, name, revision=revision, cache_dir=cache_dir)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise DownloadError(
            f"model {repo} cannot be fetched from the Hugging Face hub ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}). Put its config.json and {WEIGHTS} into a folder and give "
            "model.path=<folder>, or use model=nano data=demo, which need no network"
        ) from error
    return Path(file).parent


def read_config(directory: Path) -> GPTConfig:
    """Read the shape out of a GPT-2 `config.json`; CheckpointError names what is missing or not supported."""
    file = directory / "config.json"
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON ({error})") from error
    problems = []
    if not isinstance(values, dict) or values.get("model_type") != "gpt2":
        found = values.get("model_type") if isinstance(values, dict) else type(values).__name__
        raise CheckpointError(f"{file}: model_type is {found!r}; only 'gpt2' can be loaded")
    for key, supported in _FIXED.items():
        if values.get(key, supported) != supported:
            problems.append(f"{key}={values[key]!r} (supported: {supported!r})")
    shape: dict[str, Any] = {}
    for ours, theirs in _CONFIG_KEYS.items():
        value = values.get(theirs, values.get("n_ctx") if theirs == "n_positions" else None)
        if value is None and theirs != "layer_norm_epsilon":
            problems.append(f"{theirs} is missing")
        elif value is not None:
            shape[ours] = value
    n_inner = values.get("n_inner")
    if n_inner is not None and n_inner != 4 * values.get("n_embd", 0):
        problems.append(f"n_inner={n_inner} (supported: 4 · n_embd)")
    if problems:
        raise CheckpointError(f"{file}: {'; '.join(problems)}")
    if shape["d_model"] % shape["n_heads"]:
        raise CheckpointError(f"{file}: n_embd={shape['d_model']} is no multiple of n_head={shape['n_heads']}")
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
        "initializer_range": 0.02,
        "bos_token_id": config.n_vocab - 1,
        "eos_token_id": config.n_vocab - 1,
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
    tensors = _read_tensors(directory)
    parameters = dict(model.named_parameters())
    problems = []
    head = tensors.pop("lm_head.weight", None)
    if head is not None and "wte.weight" in tensors and not torch.equal(head, tensors["wte.weight"]):
        problems.append("lm_head.weight differs from wte.weight, but GPT-2's head is tied")
    for name, (theirs, transposed) in hf_names(model.config).items():
        tensor = tensors.pop(theirs, None)
        if tensor is None:
            problems.append(f"{theirs} is missing")
            continue
        tensor = tensor.t() if transposed and tensor.ndim == 2 else tensor
        wanted = parameters[name].shape
        if tensor.shape != wanted:
            shapes = [tuple(reversed(s)) if transposed else tuple(s) for s in (tensor.shape, wanted)]
            problems.append(f"{theirs} has shape {shapes[0]}, expected {shapes[1]}")
            continue
        parameters[name].copy_(tensor)
    problems += [f"{name} is not a tensor of GPT-2" for name in tensors]
    if problems:
        raise CheckpointError(f"{directory}: the weights do not fit:\n  " + "\n  ".join(problems))


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    file, pickled = directory / WEIGHTS, directory / "pytorch_model.bin"
    try:
        if file.is_file():
            tensors = load_file(file)
        elif pickled.is_file():
            file, tensors = pickled, torch.load(pickled, map_location="cpu", weights_only=True)
        else:
            raise CheckpointError(f"{directory}: neither {WEIGHTS} nor pytorch_model.bin is there")
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{file}: damaged or not a weights file ({error}); fetch it again") from error
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{file}: holds no named tensors")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    # Constant causal masks that old checkpoints carry along.
    return {name: t for name, t in tensors.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))}


def hf_state_dict(model: GPT, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The model's weights under Hugging Face's names; the tied head is not stored twice."""
    parameters = dict(model.named_parameters())
    return {
        f"transformer.{theirs}": (parameters[ours].detach().t() if transposed else parameters[ours].detach())
        .to("cpu", dtype)
        .contiguous()
        for ours, (theirs, transposed) in hf_names(model.config).items()
    }
