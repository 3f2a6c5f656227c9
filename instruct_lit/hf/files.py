"""Open and save models of transformers: a directory, a GGUF file, a repository on the hub."""

import copy
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instruct_lit.core.bundle import MAX_SHARD_SIZE
from instruct_lit.core.model.causal import best_device
from instruct_lit.core.model.pretrained import DTYPES, MAX_LAYERS, bundle_of
from instruct_lit.errors import CheckpointError, ConfigError, DownloadError, InstructLitError, first_line
from instruct_lit.hf.compat_bitsandbytes import keep_differentiable
from instruct_lit.hf.compat_gguf import forget_reader, shared_reader
from instruct_lit.hf.compat_liger import use_liger
from instruct_lit.hf.compat_transformers import draw_weights, forget_names, forget_quantization
from instruct_lit.hf.configuration import longest_context, set_dropouts
from instruct_lit.hf.hub import checked_download
from instruct_lit.hf.model import HFModel
from instruct_lit.hf.older_readers import spell_for_transformers_4, tokenizer_limit
from instruct_lit.hf.source import HFSource
from instruct_lit.hf.tokenizer import HFTokenizer, load_tokenizer
from instruct_lit.optional_imports import load

# Names of a language model's tensors where it is a part of another model, and by itself.
_TEXT_PART = {
    r"^(model\.)?language_model\.model\.": "model.", r"^model\.(language|text)_model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}  # fmt: skip


def write_hf(
    directory: Path,
    model: HFModel,
    tokenizer: HFTokenizer,
    chat_template: str,
    generation: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> None:
    """Write weights, configuration, tokenizer and generation defaults as `AutoModelForCausalLM` opens them.

    Sampling settings of the base are not kept, since our answers do not follow them.

    Args:
        chat_template: the Jinja text that renders our prompt.
        generation: the generation defaults under transformers' names.
        dtype: of the weights; None for the directory of an adapter, which has no weights and no configuration of the
            model.
    """
    hf, before = model.hf, tokenizer.hf.chat_template
    hf.generation_config = _generation_config(hf.generation_config, tokenizer, generation)
    if dtype is None:
        hf.generation_config.save_pretrained(directory)
    else:
        hf.save_pretrained(directory, state_dict=_in_dtype(hf, dtype), max_shard_size=MAX_SHARD_SIZE)
    try:
        tokenizer.hf.chat_template = chat_template
        tokenizer.hf.save_pretrained(directory)
    finally:
        tokenizer.hf.chat_template = before
    spell_for_transformers_4(directory, model.config.context_length, dtype)


def _generation_config(base: Any, tokenizer: HFTokenizer, generation: Mapping[str, Any]) -> Any:
    """Our generation defaults; the token that closes our responses ends generation, beside those of the base."""
    ends = list(dict.fromkeys([tokenizer.eot_id, *_ends(base)]))
    return import_transformers().GenerationConfig(
        bos_token_id=base.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.eot_id, **generation
    )


def _ends(generation_config: Any) -> list[int]:
    """The tokens that end generation in transformers."""
    ends = getattr(generation_config, "eos_token_id", None)
    return list(ends) if isinstance(ends, list) else [ends] if ends is not None else []


def _in_dtype(hf: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """The state of a model in `dtype`; tied tensors stay one tensor, and quantised ones are unchanged."""
    converted: dict[int, Tensor] = {}
    state = hf.state_dict()
    for name, tensor in state.items():
        if tensor.dtype in DTYPES.values() and tensor.dtype != dtype:
            state[name] = converted.setdefault(tensor.data_ptr(), tensor.to(dtype))
    return state


def read_hf(directory: Path, base: str | None = None, as_stored: bool = False) -> tuple[HFModel, HFTokenizer]:
    """Open a directory; with `base` the model is that one, and the tokenizer too unless the directory has one.

    With `as_stored`, for computing only, weights stay in bf16 that are stored in it, where a GPU computes in it.
    """
    import_transformers()
    dtype, limit = None if as_stored else torch.float32, tokenizer_limit(directory)
    model = load_hf(base or str(directory), dtype=dtype, default_context_length=limit)
    place = base if base is not None and not (directory / "tokenizer.json").is_file() else str(directory)
    with opening(place):
        return model, load_tokenizer(place)


def load_hf(
    source: HFSource | str,
    pretrained: bool = True,
    context_length: int | None = None,
    dropout: float = 0.0,
    activation_checkpointing: int = False,
    n_bits: int | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | None = None,
    liger: bool = False,
    default_context_length: int | None = None,
) -> HFModel:
    """Open a directory or hub repository as `AutoModelForCausalLM` does.

    Args:
        pretrained: False draws random weights with `seed`.
        n_bits: 4 freezes the blocks' weights at 4 bits (NF4, through bitsandbytes) for training adapters.
        dtype: of the weights in memory; None: bf16 where they are stored in it and a GPU computes in it, else fp32.
        device: where the weights are made, without a copy in host memory; None: in host memory.
        liger: compute with Liger's kernels on a CUDA GPU.
        default_context_length: where neither `context_length` nor the model has one.

    Raises:
        ConfigError, CheckpointError, DownloadError: as `opening` and `HFModel`.
    """
    transformers = import_transformers()
    source = HFSource(source) if isinstance(source, str) else source
    path, options = source.path, source.options()
    config = read_hf_config(source)
    base_dtype = config.dtype if pretrained and isinstance(config.dtype, torch.dtype) else torch.float32
    if dtype is None:
        exact = base_dtype == torch.bfloat16 or not pretrained
        dtype = torch.bfloat16 if exact and computes_in_bf16() else torch.float32
    is_part = vars(config).pop("is_text_part", False)
    with opening(source), shared_reader(source.gguf_file):
        text = config.get_text_config(decoder=True)
        if longest_context(config) is None and (length := context_length or default_context_length):
            text.seq_length = length  # which the bundle keeps
        set_dropouts(text, dropout)
        options |= {"dtype": dtype} if device is None else {"dtype": dtype, "device_map": {"": device}}
        place = device or torch.device("cpu")
        if n_bits == 4:
            options |= four_bits(device=place)
        if pretrained:
            options |= {"config": config, "output_loading_info": True, "key_mapping": _TEXT_PART if is_part else None}
            hf, found = transformers.AutoModelForCausalLM.from_pretrained(path, **options)  # nosec B615
            _check_complete(path, hf, found)
            if is_part:
                forget_names(hf)
        else:
            with torch.random.fork_rng([place] if place.type == "cuda" else []):
                torch.manual_seed(seed)
                with torch.device("meta" if n_bits == 4 else place):
                    hf = transformers.AutoModelForCausalLM.from_config(
                        config, dtype=options["dtype"], trust_remote_code=source.trust_remote_code
                    )
                if n_bits == 4:
                    hf = drawn_in_four_bits(hf, place)
        if n_bits == 4:
            keep_differentiable(hf)
        if liger:
            use_liger(hf)
    if source.gguf_file:
        forget_reader()
        if pretrained:
            forget_quantization(hf)
    model = HFModel(hf, context_length, activation_checkpointing)
    model.is_text_part = is_part
    model.base_dtype, model.end_ids = base_dtype, frozenset(_ends(getattr(hf, "generation_config", None)))
    return model


def _check_complete(path: str, hf: Any, found: Mapping[str, Any]) -> None:
    """Refuse files that lack weights of the model, which transformers draws at random, and warn of what they add."""
    missing, unused = (sorted(found[key]) for key in ("missing_keys", "unexpected_keys"))
    if missing:
        raise CheckpointError(
            f"model.path={path}: {len(missing)} of the model's tensors are not in its files ({missing[0]}, for "
            "example); give the complete model"
        )
    quantization, names = getattr(hf.config, "quantization_config", None), hf.state_dict().keys()
    scale = next((name for name in unused if name.partition("_scale")[0] in names), None)
    if scale is not None or (quantization and getattr(hf, "hf_quantizer", None) is None):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else type(quantization).__name__
        what = f"{scale} is not read" if scale else f"quant_method={method}"
        raise CheckpointError(
            f"model.path={path}: its weights are quantised in a way that transformers does not know ({what}); give "
            "the model that they were made from"
        )
    if unused:
        warnings.warn(
            f"model.path={path}: {len(unused)} tensors in its files are no part of the model and are not read "
            f"({unused[0]}, for example)",
            stacklevel=2,
        )
    ends = hf.get_output_embeddings(), hf.get_input_embeddings()
    head, embedding = (getattr(end, "weight", None) for end in ends)
    if head is not embedding:  # transformers 5 reads both where the files have both, others only where this is said
        for config in (hf.config, hf.config.get_text_config(decoder=True)):
            config.tie_word_embeddings = False


def computes_in_bf16() -> bool:
    """Whether there is a CUDA GPU, and it multiplies in bf16."""
    return best_device().type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def own_device() -> torch.device:
    """The GPU of this process, the CPU if there is none."""
    device = best_device()
    return device if device.type == "cpu" else torch.device(device.type, int(os.environ.get("LOCAL_RANK", 0)))


def four_bits(dtype: torch.dtype = torch.bfloat16, device: torch.device | None = None) -> dict[str, Any]:
    """The arguments of `from_pretrained` for linear layers in 4 bits (NF4), which are computed in `dtype`.

    Args:
        device: where the weights are made and stay; None: that of the process.
    """
    quantization = import_transformers().BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": quantization, "device_map": {"": device or own_device()}, "dtype": dtype}


class _DrawnWhenRead:
    """A weight that is drawn when transformers reads it, as it reads a slice of a safetensors file."""

    def __init__(self, hf: Any, layer: torch.nn.Module, name: str, device: torch.device) -> None:
        self.hf, self.layer, self.name, self.device = hf, layer, name, device

    def __getitem__(self, index: Any) -> Tensor:
        layer = copy.deepcopy(self.layer).to_empty(device=self.device, recurse=False)
        draw_weights(self.hf, layer)
        return getattr(layer, self.name).data


def drawn_in_four_bits(hf: Any, device: torch.device) -> Any:
    """A model like `hf`, which has no values, of random weights: each is drawn and quantised before the next."""
    weights = {}
    for name, _ in hf.named_parameters():
        layer, _, own_name = name.rpartition(".")
        weights[name] = _DrawnWhenRead(hf, hf.get_submodule(layer), own_name, device)
    return type(hf).from_pretrained(None, config=hf.config, state_dict=weights, **four_bits(device=device))


def read_hf_config(source: HFSource) -> Any:
    """The configuration of a model of transformers, that of the text where it reads images or sound too."""
    transformers = import_transformers()
    with opening(source), shared_reader(source.gguf_file):
        config = transformers.AutoConfig.from_pretrained(source.path, **source.options())  # nosec B615
    text, causal = config.get_text_config(decoder=True), transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    has_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if config.is_encoder_decoder or not (has_code or type(config) in causal or type(text) in causal):
        what = "is an encoder with a decoder" if config.is_encoder_decoder else "is none of them in transformers"
        raise CheckpointError(
            f"model.path={source.path}: only causal language models can be opened, and {config.model_type} {what}"
        )
    if text is not config and type(text) in causal:
        text.dtype, text.is_text_part = config.dtype, True
        text.tie_word_embeddings = getattr(config, "tie_word_embeddings", text.tie_word_embeddings)
        config = text
    n_layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    if isinstance(n_layers, int) and n_layers > MAX_LAYERS:  # transformers would make them one by one
        raise CheckpointError(
            f"model.path={source.path}: num_hidden_layers={n_layers}; at most {MAX_LAYERS} are supported"
        )
    return config


def import_transformers() -> Any:
    """transformers without its progress bars and warnings; ConfigError where the extra `hf` is not installed."""
    transformers = load("transformers", "model=hf", "hf")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


@torch.no_grad()
def grow_vocabulary(model: HFModel, tokenizer: HFTokenizer, new: Sequence[int]) -> None:
    """Add rows for the tokens `new` to embedding and head: the mean of the rows in use, tied weights stay tied.

    A padded vocabulary may have the rows already; they are set too, since they were never trained. So are those of
    tokens that the tokenizer had and the model did not.
    """
    n_rows = len(model.head_weight)
    new = sorted({*new, *range(n_rows, tokenizer.n_vocab)})
    if not new:
        return
    hf, n_before = model.hf, min(new)
    if tokenizer.n_vocab > n_rows:
        hf.resize_token_embeddings(tokenizer.n_vocab, mean_resizing=False)
    tables = {id(p): p for e in (hf.get_input_embeddings(), hf.get_output_embeddings()) for p in e.parameters()}
    for table in tables.values():
        table[new] = table[:n_before].mean(0)
    model.vocabulary_changed()


@contextmanager
def opening(source: HFSource | str) -> Iterator[None]:
    """Convert errors of transformers while it opens `source`: ConfigError, CheckpointError or DownloadError."""
    path, cache_dir = (source, None) if isinstance(source, str) else (source.path, source.cache_dir)
    try:
        with checked_download(path, cache_dir):
            yield
    except InstructLitError:
        raise
    except Exception as error:
        message = first_line(error) if "weights_only" in str(error) else " ".join(str(error).split())
        if "trust_remote_code" in message:
            raise ConfigError(
                f"model.path={path}: needs the Python code in the repository; if you trust it, add model."
                "trust_remote_code=true to train (fit=false: to test and answer only) or peek, not to other commands"
            ) from error
        if isinstance(error, ImportError):
            raise ConfigError(f"model.path={path}: {message}") from error
        place = Path(path).expanduser()
        gguf = place if place.suffix == ".gguf" else next(place.glob("*.gguf"), None)
        if gguf is not None and gguf.is_file() and (gguf == place or ".gguf" not in message):
            raise ConfigError(
                f"model.path={path}: a GGUF file is named by its folder and its name; give model.path={gguf.parent} "
                f"model.gguf_file={gguf.name}"
            ) from error
        if (bundle_of(place) / "adapter_config.json").is_file():
            raise CheckpointError(
                f"model.path={path}: an adapter without its base model; give a run with adapter.merge=true, or what "
                "export to=hf makes of it"
            ) from error
        if place.is_dir():
            raise CheckpointError(f"model.path={path}: transformers cannot open it ({message[:200]})") from error
        raise DownloadError(
            f"model.path={path}: neither a folder nor a reachable repository of the hub ({message[:120]}); "
            "offline, give a folder with config.json, tokenizer and weights"
        ) from error
