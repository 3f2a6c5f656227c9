"""Models of transformers in and out: a directory, a GGUF file or the hub; and the directory that others open."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from instruct_lit.core.model.device import has_gpu
from instruct_lit.errors import CheckpointError, ConfigError, DownloadError, InstructLitError
from instruct_lit.hf.model import HFModel
from instruct_lit.hf.tokenizer import HFTokenizer, load_tokenizer

_DROPOUTS = (
    "attention_dropout", "attn_pdrop", "attn_dropout", "embd_pdrop", "embedding_dropout", "embed_dropout",
    "resid_pdrop", "resid_dropout", "residual_dropout", "hidden_dropout", "activation_dropout", "dropout",
)  # fmt: skip


def write_hf(
    directory: Path,
    model: HFModel,
    tokenizer: HFTokenizer,
    chat_template: str,
    generation: Mapping[str, Any],
    weights: bool = True,
) -> None:
    """Write weights, configuration, tokenizer and generation defaults, as `AutoModelForCausalLM` wants them.

    `chat_template` is the Jinja that renders our prompt, `generation` the defaults under transformers' names. The token
    that closes our responses ends generation, beside those that the model had. Without `weights` there is no
    configuration of the model either: the directory is that of an adapter.
    """
    hf, before = model.hf, tokenizer.hf.chat_template
    defaults = hf.generation_config
    ends = defaults.eos_token_id if isinstance(defaults.eos_token_id, list) else [defaults.eos_token_id]
    ends = list(dict.fromkeys([tokenizer.eot_id, *(end for end in ends if end is not None)]))
    defaults.update(eos_token_id=ends, pad_token_id=tokenizer.eot_id, **generation)
    if weights:
        hf.save_pretrained(directory)
    else:
        defaults.save_pretrained(directory)
    try:
        tokenizer.hf.chat_template = chat_template
        tokenizer.hf.save_pretrained(directory)
    finally:
        tokenizer.hf.chat_template = before


def read_hf(directory: Path, base: str | None = None) -> tuple[HFModel, HFTokenizer]:
    """Open what `write_hf`, or any other program, wrote; with `base` only the tokenizer, where there is one."""
    import_transformers()
    model = load_hf(base or str(directory))
    place = base if base is not None and not (directory / "tokenizer.json").is_file() else str(directory)
    with opening(place):
        return model, load_tokenizer(place)


def load_hf(
    path: str,
    revision: str | None = None,
    pretrained: bool = True,
    gguf_file: str | None = None,
    trust_remote_code: bool = False,
    context_length: int | None = None,
    dropout: float = 0.0,
    activation_checkpointing: bool = False,
    n_bits: int | None = None,
    seed: int = 0,
    cache_dir: Path | None = None,
) -> HFModel:
    """Open a directory or hub repository as `AutoModelForCausalLM` does; `pretrained=False` draws random weights.

    `gguf_file` names a GGUF file in it, whose weights are expanded to fp32. Code that comes with a repository runs only
    with `trust_remote_code`. With `n_bits=4` the blocks' weights are frozen at 4 bits (NF4, through
    bitsandbytes), for adapters to be trained on. Raises ConfigError, CheckpointError and DownloadError.
    """
    transformers = import_transformers()
    place: dict[str, Any] = {"revision": revision, "gguf_file": gguf_file, "cache_dir": cache_dir}
    place = {name: value for name, value in place.items() if value} | {"trust_remote_code": trust_remote_code}
    config = read_hf_config(path, **place)
    with opening(path):
        text = config.get_text_config(decoder=True)
        for name in _DROPOUTS:
            if isinstance(getattr(text, name, None), int | float):
                setattr(text, name, dropout)
        if pretrained:
            options = _four_bits(transformers) if n_bits == 4 else {"dtype": torch.float32}
            hf = transformers.AutoModelForCausalLM.from_pretrained(path, config=config, **place, **options)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                hf = transformers.AutoModelForCausalLM.from_config(
                    config, dtype=torch.float32, trust_remote_code=trust_remote_code
                )
    if gguf_file:  # expanded, so the model is an ordinary one and is saved as such
        del hf.config.quantization_config
        hf.hf_quantizer = None
    return HFModel(hf, context_length, activation_checkpointing)


def _four_bits(transformers: Any) -> dict[str, Any]:
    quantization = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    # Weights of 4 bits are made where they will stay: each process of several on its own device.
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if has_gpu() else "cpu"
    return {"quantization_config": quantization, "device_map": {"": device}, "dtype": torch.bfloat16}


def read_hf_config(path: str, **place: Any) -> Any:
    """The configuration of a model of transformers; `place` as for `load_hf`."""
    transformers = import_transformers()
    with opening(path):
        return transformers.AutoConfig.from_pretrained(path, **{k: v for k, v in place.items() if v is not None})


def import_transformers() -> Any:
    """transformers, without its progress bars and advice; ConfigError where the extra `hf` is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError("model=hf needs transformers: pip install 'instruct-lit[hf]'") from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


@torch.no_grad()
def grow_vocabulary(model: HFModel, tokenizer: HFTokenizer, new: Sequence[int]) -> None:
    """Give the model rows for new tokens, in embedding and head: the mean of the rows that were in use.

    Ties stay ties. A vocabulary that was padded may have the rows already; they are set all the same, since nothing was
    learnt in them.
    """
    if not new:
        return
    hf, n_before = model.hf, min(new)
    if tokenizer.n_vocab > len(model.head_weight):
        hf.resize_token_embeddings(tokenizer.n_vocab, mean_resizing=False)
    tables = {id(p): p for e in (hf.get_input_embeddings(), hf.get_output_embeddings()) for p in e.parameters()}
    for table in tables.values():
        table[list(new)] = table[:n_before].mean(0)
    model.vocabulary_changed()


@contextmanager
def opening(path: str) -> Iterator[None]:
    """Turn what transformers raises while it opens `path` into one of our errors."""
    try:
        yield
    except InstructLitError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())
        if "trust_remote_code" in message:
            raise ConfigError(
                f"model.path={path}: comes with code of its own; if you trust it, add model.trust_remote_code=true"
            ) from error
        if isinstance(error, ImportError):
            raise ConfigError(f"model.path={path}: {message}") from error
        if Path(path).expanduser().is_dir():
            raise CheckpointError(f"model.path={path}: cannot be opened by transformers ({message})") from error
        raise DownloadError(
            f"model.path={path}: no such folder, and not to be had from the Hugging Face hub ({message}). Without "
            "network, give a folder with config.json, the tokenizer's files and the weights"
        ) from error
