"""A finished model on disk: a Hugging Face directory, and one file of ours with template, provenance and metrics.

Bundles of our GPT are written and read here. Other model families, adapters, and the files of GPT-2's tokenizer are
registered by `instruct_lit.hf.install`.
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import save_torch_state_dict

from instruct_lit import __version__
from instruct_lit.core.data.template import CHAT, Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer, Tokenizer
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.gpt import GPT
from instruct_lit.core.model.pretrained import bundle_of, hf_config, hf_state_dict, load_gpt
from instruct_lit.errors import CheckpointError, ConfigError

OURS = "instruct_lit.json"
MAX_SHARD_SIZE = "5GB"  # of a file of weights
_REMEDY = "give a run folder, a bundle or a Hugging Face directory"


@dataclass(frozen=True)
class OpenedModel:
    """A finished model with its tokenizer and template.

    `generation` holds the generation settings that it was saved with, `about` the whole content of our file.
    """

    directory: Path
    model: CausalLM
    tokenizer: Tokenizer
    template: Template
    generation: Mapping[str, Any]
    about: Mapping[str, Any]


BundleParts = tuple[CausalLM, Tokenizer, Template]


class ModelFamily(Protocol):
    """Writes and reads the directories of other models than our GPT; `kind` is its name in our file.

    `owns`: whether a model or tokenizer belongs to the family, `reads`: whether a directory does, with `about` in our
    file. `save` writes what transformers opens, with `generation` under its names; without a `dtype` an adapter is in
    the directory. `save_tokenizer` writes the tokenizer unchanged. The arguments of `open` are those of `open_model`.
    """

    kind: str

    def owns(self, part: CausalLM | Tokenizer) -> bool: ...
    def save(
        self, directory: Path, parts: BundleParts, generation: Mapping[str, Any], dtype: torch.dtype | None
    ) -> None: ...
    def save_tokenizer(self, directory: Path, tokenizer: Tokenizer) -> None: ...
    def reads(self, directory: Path, about: Mapping[str, Any]) -> bool: ...
    def open(
        self, directory: Path, about: Mapping[str, Any], template: Template | None, merge: bool, as_stored: bool
    ) -> BundleParts: ...


FAMILIES: list[ModelFamily] = []
# Each writes GPT-2's tokenizer, with a context length and the template as a chat template, for other programs.
TOKENIZER_EXPORTS: list[Callable[[Path, GPT2Tokenizer, int, Template], None]] = []


def save_bundle(
    directory: Path, model: CausalLM, tokenizer: Tokenizer, template: Template, generation: Mapping[str, Any],
    about: Mapping[str, Any], write_adapter: Callable[[Path], None] | None = None, dtype: torch.dtype | None = None,
) -> None:  # fmt: skip
    """Write the model so that transformers, and every program that reads its directories, opens it.

    Everything is written to a temporary directory that is renamed at the end; an existing bundle is replaced.

    Args:
        about: data fingerprint, metrics and provenance, for our file.
        write_adapter: writes an adapter to the directory, in place of the weights.
        dtype: of the weights; None: that of the base model.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{directory.name}.", dir=directory.parent, ignore_cleanup_errors=True
    ) as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        if write_adapter is not None:
            write_adapter(new)
        defaults, parts = _transformers_generation(generation), (model, tokenizer, template)
        kind = _write_model(new, parts, defaults, None if write_adapter else dtype or model.base_dtype)
        next_turn = template.next_turn and template.next_turn.text
        own = {
            "version": __version__, "kind": kind, "markup": bool(getattr(tokenizer, "markup", False)),
            "template": {"name": template.name, "text": template.text, "next_turn": next_turn},
            "generation": dict(generation),
        }  # fmt: skip
        _write_json(new / OURS, {**own, **about})
        for file in new.iterdir():  # safetensors gives others no access
            file.chmod((new / OURS).stat().st_mode)
        if directory.exists():
            os.replace(directory, old)
        os.replace(new, directory)


def _write_model(folder: Path, parts: BundleParts, generation: Mapping[str, Any], dtype: torch.dtype | None) -> str:
    """Write all but our file, weights only with a `dtype`; return the kind of the model."""
    model, tokenizer, template = parts
    if (family := _owner(model)) is not None:
        family.save(folder, parts, generation, dtype)
        return family.kind
    assert isinstance(model, GPT) and isinstance(tokenizer, GPT2Tokenizer), f"no family writes a {type(model).__name__}"
    eot = {"bos_token_id": tokenizer.eot_id, "eos_token_id": tokenizer.eot_id}
    if dtype is not None:
        save_torch_state_dict(hf_state_dict(model, dtype), folder, max_shard_size=MAX_SHARD_SIZE)
        _write_json(folder / "config.json", {**hf_config(model.config), **eot, "dtype": str(dtype).split(".")[1]})
    _write_json(folder / "generation_config.json", {**eot, "pad_token_id": tokenizer.eot_id, **generation})
    save_tokenizer(folder, tokenizer, model.config.context_length, template)
    return "gpt2"


def _owner(part: CausalLM | Tokenizer) -> ModelFamily | None:
    return next((family for family in FAMILIES if family.owns(part)), None)


def save_tokenizer(directory: Path, tokenizer: Tokenizer, context_length: int, template: Template) -> None:
    """Write the files that transformers opens as a tokenizer: GPT-2's with our chat template, others unchanged."""
    directory.mkdir(parents=True, exist_ok=True)
    if (family := _owner(tokenizer)) is not None:
        return family.save_tokenizer(directory, tokenizer)
    assert isinstance(tokenizer, GPT2Tokenizer), f"no family writes a {type(tokenizer).__name__}"
    for export in TOKENIZER_EXPORTS:
        export(directory, tokenizer, context_length, template)


def open_model(
    run: str | Path, template: Template | None = None, merge: bool = True, as_stored: bool = False
) -> OpenedModel:
    """Open a run folder, a bundle, or a Hugging Face directory; a given template replaces the bundle's own.

    A directory of another program with another model than GPT-2 provides its own chat template. A peft directory (the
    bundle of a run with `adapter.merge=false`, for example) is opened on its base model and, with `merge`, merged.
    With `as_stored`, for computing only, weights of transformers' models stay in bf16 where a GPU computes in it.
    Raises: CheckpointError for a missing or damaged model, ConfigError for GPT-2 of another program without `template`.
    """
    directory = bundle_of(run)
    if not directory.is_dir():
        raise CheckpointError(f"run={run}: no such folder; {_REMEDY}")
    about = read_about(directory)
    family = next((family for family in FAMILIES if family.reads(directory, about)), None)
    if family is not None:
        model, tokenizer, template = family.open(directory, about, template, merge, as_stored)
    elif about.get("kind", "gpt2") != "gpt2":
        raise CheckpointError(f"run={run}: a bundle of kind {about['kind']}, which needs the folder instruct_lit/hf")
    elif not about and (directory / "checkpoints").is_dir():
        found = "this run has not finished, so it has no bundle"
        raise CheckpointError(f"run={run}: {found}; resume it (train … ckpt_path={run})")
    elif not (directory / "config.json").exists():
        raise CheckpointError(f"run={run}: no config.json there; {_REMEDY}")
    else:
        template = template or stored_template(directory, about)
        model, tokenizer = load_gpt(path=directory), GPT2Tokenizer()
    return OpenedModel(directory, model, tokenizer, template, about.get("generation", {}), about)


def stored_template(directory: Path, about: Mapping[str, Any]) -> Template:
    """The template in our file, as a text: a bundle, which may be a stranger's, cannot name a file to be read."""
    if not about:
        raise ConfigError(f"run={directory}: not a bundle of instruct-lit, so give a template (template=alpaca)")
    own = about["template"]
    return Template(own["name"], own["text"], next_turn=own.get("next_turn"))


def read_about(directory: Path) -> dict[str, Any]:
    """The content of our file, empty for a directory of another program; CheckpointError when the file is damaged."""
    file = directory / OURS
    if not file.exists():
        return {}
    if not file.is_file():  # a FIFO would be waited for
        raise CheckpointError(f"{file}: not a regular file")
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        if about["template"]["name"] != CHAT:
            stored_template(directory, about)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged ({type(error).__name__}: {error})") from error
    return about


def _transformers_generation(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Our generation settings under transformers' names."""
    is_sampled = settings["temperature"] != 0
    # Without max_new_tokens, which transformers would apply whatever length a caller requests. By default it keeps the
    # 50 most likely tokens; 0 keeps all.
    cuts = {"top_k": settings["top_k"] or 0, "top_p": 1.0 if settings["top_p"] is None else settings["top_p"]}
    sampling = {"temperature": settings["temperature"], **cuts} if is_sampled else {}
    return {"repetition_penalty": settings["repetition_penalty"], "do_sample": is_sampled, **sampling}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
