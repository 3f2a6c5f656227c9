"""Load and save GPT-2 weights as Hugging Face directories."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from instruct_lit.core.model.gpt import GPT, INIT_STD, GPTConfig
from instruct_lit.errors import CheckpointError, first_line

WEIGHTS = "model.safetensors"
SHARDS = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"
MAX_LAYERS = 1024
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_REMEDY = "; delete a downloaded file, and the next run downloads it again"
# Our names within those of parameters, and Hugging Face's. Theirs with `c_` are Conv1Ds, whose matrix is (in, out).
_RENAMED = {"blocks.": "h.", ".attn.qkv.": ".attn.c_attn.", ".proj.": ".c_proj.", ".mlp.fc.": ".mlp.c_fc."}
_CONFIG_KEYS = {
    "n_vocab": "vocab_size",
    "context_length": "n_positions",
    "d_model": "n_embd",
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "layer_norm_eps": "layer_norm_epsilon",
}
# Keys of a GPT-2 config with the one value that this GPT supports.
_FIXED = {
    "activation_function": "gelu_new", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False, "tie_word_embeddings": True,
}  # fmt: skip


def load_gpt(
    path: str | Path | None = None,
    pretrained: bool = True,
    config: GPTConfig | None = None,
    dropout: float = 0.0,
    activation_checkpointing: int = False,
    seed: int = 0,
) -> GPT:
    """Build a GPT with the weights of a directory, or with random ones (`pretrained=False`, drawn with `seed`).

    The shape is that of the directory; without `path`, of random weights, it is `config`. Raises: CheckpointError as
    `checkpoint_directory`, `read_config` and `load_weights`.
    """
    assert path is not None or not pretrained, "pretrained weights have a path"
    directory = None if path is None else checkpoint_directory(path)
    shape = read_config(directory) if directory is not None else config or GPTConfig()
    try:
        with torch.device("meta"):  # every weight is written below, so torch does not initialise them
            model = GPT(shape, dropout, activation_checkpointing)
        model.to_empty(device="cpu")
    except RuntimeError as error:  # of sizes that overflow, or that no memory has room for
        message = f"{directory}: a model of its sizes does not fit in memory ({first_line(error)[:80]})"
        raise CheckpointError(message) from error
    if directory is None or not pretrained:
        model.init_weights(seed)
    else:
        load_weights(model, directory)
    return model


def bundle_of(run: str | Path) -> Path:
    """The directory with the weights: `run` itself, or the bundle of a run folder."""
    directory = Path(run).expanduser()
    return directory / "bundle" if (directory / "bundle").is_dir() else directory


def checkpoint_directory(path: str | Path) -> Path:
    """Return the directory with `config.json` and weights (`bundle_of`)."""
    directory = bundle_of(path)
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"model.path={path}: no config.json there; give a bundle or a Hugging Face directory")
    return directory


def read_config(directory: Path) -> GPTConfig:
    """Read the shape from a GPT-2 `config.json`; CheckpointError names every missing key and unsupported value."""
    file = directory / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON ({error}){_REMEDY}") from error
    if not isinstance(values, dict) or values.get("model_type") != "gpt2":
        found = repr(values.get("model_type")) if isinstance(values, dict) else f"that of a {type(values).__name__}"
        raise CheckpointError(f"{file}: model_type is {found}; only 'gpt2' can be loaded")
    values = {"n_positions": values.get("n_ctx"), "layer_norm_epsilon": 1e-5, **values}
    shape: dict[str, Any] = {ours: values.get(theirs) for ours, theirs in _CONFIG_KEYS.items()}
    problems = [
        f"{key}={values[key]!r} (supported: {supported!r})"
        for key, supported in _FIXED.items()
        if values.get(key, supported) != supported
    ]
    for ours, theirs in _CONFIG_KEYS.items():
        value, number = shape[ours], type(getattr(GPTConfig, ours))
        if value is None:
            problems.append(f"{theirs} is missing")
        elif type(value) is not number or value <= 0:
            problems.append(f"{theirs}={value!r} (supported: a positive {number.__name__})")
        elif ours == "n_layers" and value > MAX_LAYERS:
            problems.append(f"{theirs}={value} (supported: at most {MAX_LAYERS})")
    if not problems and values.get("n_inner") not in (None, 4 * shape["d_model"]):
        problems.append(f"n_inner={values['n_inner']!r} (supported: null or 4 · n_embd)")
    if not problems and shape["d_model"] % shape["n_heads"]:
        problems.append(f"n_embd={shape['d_model']} is not a multiple of n_head={shape['n_heads']}")
    if problems:
        raise CheckpointError(f"{file}: {'; '.join(problems)}")
    return GPTConfig(**shape)


def hf_config(config: GPTConfig) -> dict[str, Any]:
    """The content of `config.json` with which transformers opens a model of this shape."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{theirs: getattr(config, ours) for ours, theirs in _CONFIG_KEYS.items()},
        **{"n_ctx": config.context_length, "n_inner": None, "initializer_range": INIT_STD},
        **_FIXED,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
    }


def hf_names(config: GPTConfig) -> dict[str, tuple[str, bool]]:
    """Hugging Face's name of each of our parameters, and whether the matrix is transposed there."""
    with torch.device("meta"):
        parameters = GPT(config).state_dict()
    names = {}
    for name in parameters:
        theirs = name
        for old, new in _RENAMED.items():
            theirs = theirs.replace(old, new)
        names[name] = theirs, ".c_" in theirs and theirs.endswith("weight")
    return names


@torch.no_grad()
def load_weights(model: GPT, directory: Path) -> None:
    """Copy the weights of a Hugging Face GPT-2 directory: safetensors, or `pytorch_model.bin` without its objects.

    CheckpointError names the damaged file, or every missing, unexpected and misshaped tensor.
    """
    file, tensors = _read_tensors(directory)
    parameters = dict(model.named_parameters())
    problems = []
    head = tensors.pop("lm_head.weight", None)
    if head is not None and "wte.weight" in tensors and not torch.equal(head, tensors["wte.weight"]):
        problems.append("lm_head.weight differs from wte.weight, but GPT-2's head is tied")
    for name, (theirs, transposed) in hf_names(model.config).items():
        parameter, tensor = parameters[name], tensors.pop(theirs, None)  # popped to free its memory
        expected = tuple(parameter.shape)[::-1] if transposed else tuple(parameter.shape)
        if tensor is None:
            problems.append(f"{theirs} is missing")
        elif tuple(tensor.shape) != expected:
            problems.append(f"{theirs} has shape {tuple(tensor.shape)}, expected {expected}")
        elif not tensor.is_floating_point():
            problems.append(f"{theirs} has dtype {tensor.dtype}, expected a floating-point one")
        else:
            parameter.copy_(tensor.t() if transposed else tensor)
            stored = tensor.dtype
    problems += [f"{name} is not a tensor of this model" for name in tensors]
    if problems:
        raise CheckpointError(f"{file}: the weights do not fit:\n  " + "\n  ".join(problems))
    stated = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    name = stated.get("dtype") or stated.get("torch_dtype") or str(stored).removeprefix("torch.")
    model.base_dtype = DTYPES.get(name, torch.float32)


def _read_tensors(directory: Path) -> tuple[Path, dict[str, Tensor]]:
    names = (WEIGHTS, SHARDS, PICKLED)
    file = next((directory / name for name in names if (directory / name).is_file()), None)
    if file is None:
        is_sharded = (directory / f"{PICKLED}.index.json").is_file()
        found = f"shards of {PICKLED} are not read" if is_sharded else f"it has none of {', '.join(names)}"
        raise CheckpointError(f"{directory}: {found}; save it with safetensors (save_pretrained)")
    try:
        if file.name == PICKLED:
            read = torch.load(file, map_location="cpu", weights_only=True)
        else:
            shards = _shards(file) if file.name == SHARDS else [file]
            read = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    except Exception as error:  # unknown bytes can fail in any way
        raise CheckpointError(f"{file}: damaged or not a weights file ({first_line(error)}){_REMEDY}") from error
    if not isinstance(read, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in read.items()):
        raise CheckpointError(f"{file}: it is not a dictionary of tensors")
    masks = (".attn.bias", ".attn.masked_bias")  # constant causal masks of old checkpoints
    return file, {n.removeprefix("transformer."): tensor for n, tensor in read.items() if not n.endswith(masks)}


def _shards(index: Path) -> list[Path]:
    """The files that an index names, all of which lie beside it."""
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise FileNotFoundError(f"it names {name}, which is not beside it")
    return [index.parent / name for name in names]


def hf_state_dict(model: GPT, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The model's weights under Hugging Face's names, without the tied head."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return {
        f"transformer.{theirs}": (weights[ours].t() if transposed else weights[ours]).to("cpu", dtype).contiguous()
        for ours, (theirs, transposed) in hf_names(model.config).items()
    }
