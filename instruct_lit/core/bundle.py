"""A finished model on disk: a Hugging Face directory with its template, data fingerprint and metrics beside it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from instruct_lit import __version__
from instruct_lit.core.chat_template_export import chat_template, write_gpt2_tokenizer
from instruct_lit.core.data.encode import Tokenizer
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.gpt import GPT
from instruct_lit.core.model.pretrained import WEIGHTS, hf_config, hf_state_dict, load_gpt
from instruct_lit.errors import CheckpointError, ConfigError
from instruct_lit.hf.adapters import CONFIG, Adapter, Base, open_adapter, read_adapter_config
from instruct_lit.hf.chat_template import CHAT, with_chat
from instruct_lit.hf.files import read_hf, write_hf
from instruct_lit.hf.model import HFModel
from instruct_lit.hf.tokenizer import HFTokenizer

OURS = "instruct_lit.json"


@dataclass(frozen=True)
class OpenedModel:
    """A finished model, ready to answer: what `open_model` found at `directory`.

    `generation` holds the settings of generation that it was saved with, `about` everything else that is known of it.
    """

    directory: Path
    model: CausalLM
    tokenizer: Tokenizer
    template: Template
    generation: Mapping[str, Any]
    about: Mapping[str, Any]


def save_bundle(
    directory: Path,
    model: CausalLM,
    tokenizer: Tokenizer,
    template: Template,
    generation: Mapping[str, Any],
    about: Mapping[str, Any],
    adapter: tuple[Adapter, Base] | None = None,
) -> None:
    """Write the model so that transformers, and everything that reads its directories, opens it.

    `generation` holds the default settings of generation, `about` data fingerprint, metrics and provenance. With an
    `adapter` and its base the directory holds the adapter in place of the weights, as peft opens it. All is
    written under a temporary name and renamed; a bundle that was there is replaced.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    new, old = temporary / "new", temporary / "old"
    new.mkdir()
    try:
        kind = _write_model(new, model, tokenizer, template, generation, adapter)
        own = {
            "version": __version__,
            "kind": kind,
            "markup": bool(getattr(tokenizer, "markup", False)),
            "template": {
                "name": template.name,
                "text": template.text,
                "next_turn": template.next_turn.text if template.next_turn is not None else None,
            },
            "generation": dict(generation),
            **about,
        }
        _write(new / OURS, own)
        if directory.exists():
            os.replace(directory, old)
        os.replace(new, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_model(
    folder: Path,
    model: CausalLM,
    tokenizer: Tokenizer,
    template: Template,
    generation: Mapping[str, Any],
    adapter: tuple[Adapter, Base] | None,
) -> str:
    """Write what others read of a bundle; return whose model it is, `gpt2` for ours or `hf`."""
    if adapter is not None:
        adapter[0].save(folder, adapter[1])
    if isinstance(model, HFModel):
        assert isinstance(tokenizer, HFTokenizer)
        # Of our own templates the text is without the sign that the tokenizer puts before a text.
        start = "" if template.name == CHAT else tokenizer.hf.decode(list(tokenizer.prompt_start))
        jinja = template.text if template.name == CHAT else chat_template(template, start, tokenizer.end)
        write_hf(folder, model, tokenizer, jinja, _hf_generation(generation), weights=adapter is None)
        return "hf"
    assert isinstance(model, GPT) and isinstance(tokenizer, GPT2Tokenizer)
    eot = {"bos_token_id": tokenizer.eot_id, "eos_token_id": tokenizer.eot_id}
    if adapter is None:
        save_file(hf_state_dict(model), folder / WEIGHTS, metadata={"format": "pt"})
        _write(folder / "config.json", {**hf_config(model.config), **eot})
    _write(folder / "generation_config.json", {**eot, "pad_token_id": tokenizer.eot_id, **_hf_generation(generation)})
    save_tokenizer(folder, tokenizer, model.config.context_length, template)
    return "gpt2"


def save_tokenizer(directory: Path, tokenizer: Tokenizer, context_length: int, template: Template) -> None:
    """Write the files that transformers opens as a tokenizer: GPT-2's with our chat template, others unchanged."""
    directory.mkdir(parents=True, exist_ok=True)
    if isinstance(tokenizer, HFTokenizer):
        tokenizer.hf.save_pretrained(directory)
        return
    assert isinstance(tokenizer, GPT2Tokenizer)
    write_gpt2_tokenizer(directory, tokenizer, context_length, template)


def bundle_of(run: str | Path) -> Path:
    """The directory with the weights: `run` itself, or the bundle of a run folder."""
    directory = Path(run).expanduser()
    return directory / "bundle" if (directory / "bundle").is_dir() else directory


def open_model(run: str | Path, template: Template | None = None, merge: bool = True) -> OpenedModel:
    """Open a run folder, a bundle, or a Hugging Face directory; a given template replaces the bundle's own.

    A directory that is no bundle of ours and no GPT-2 brings its own chat template. A peft directory (the bundle of a
    run with `adapter.merge=false`, say) is opened on its base model and merged, or with `merge=False` left on it.
    Raises CheckpointError when there is no model or it is damaged, ConfigError when a directory that is no bundle of
    ours comes without a template.
    """
    directory = bundle_of(run)
    if not directory.is_dir():
        raise CheckpointError(f"run={run}: no such folder (a run folder, a bundle or a Hugging Face directory)")
    about = read_about(directory)
    base = read_adapter_config(directory)["base_model_name_or_path"] if (directory / CONFIG).is_file() else None
    if _is_hf(Path(base or directory), about):
        hf, hf_tokenizer = read_hf(directory, base)
        if base is not None:
            _put_on(directory, hf, merge)
        own = about.get("template", {"name": CHAT})
        if template is None and own["name"] == CHAT:
            hf_tokenizer, template = with_chat(hf_tokenizer)
        elif template is None:
            template = _template_of(own)
        if about.get("markup") and template.name != CHAT:  # special tokens of the run's own
            hf_tokenizer = HFTokenizer(hf_tokenizer.hf, markup=True)
            template = template.escaping(hf_tokenizer.escape)
        return OpenedModel(directory, hf, hf_tokenizer, template, about.get("generation", {}), about)
    if template is None and about:
        template = _template_of(about["template"])
    if directory == Path(run).expanduser() and (directory / "checkpoints").is_dir():
        raise CheckpointError(
            f"run={run}: this run has not finished, it has no bundle; go on with it (train … ckpt_path={run})"
        )
    if template is None:
        raise ConfigError(f"run={run}: no bundle of ours, so the template must be given (template=alpaca)")
    model = load_gpt(path=base or directory)
    if base is not None:
        _put_on(directory, model, merge)
    return OpenedModel(directory, model, GPT2Tokenizer(), template, about.get("generation", {}), about)


def _template_of(own: Mapping[str, Any]) -> Template:
    """The template whose text a bundle holds; a bundle, which may be a stranger's, names no file for it."""
    return Template(own["name"], own["text"], next_turn=own.get("next_turn"))


def _put_on(directory: Path, model: CausalLM, merge: bool) -> None:
    adapter = open_adapter(directory, model)
    if merge:
        adapter.merge()


def _is_hf(directory: Path, about: Mapping[str, Any]) -> bool:
    """Whether transformers must run the model: a bundle says it, of other directories it is all but GPT-2."""
    if about:
        return about.get("kind", "gpt2") == "hf"
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return not directory.is_dir()  # the base of an adapter may be on the hub
    except (OSError, ValueError, RecursionError):  # said better when the weights are read
        return False
    return isinstance(config, dict) and config.get("model_type", "gpt2") != "gpt2"


def read_about(directory: Path) -> dict[str, Any]:
    """What a bundle says about itself besides its weights; empty for a directory that is no bundle of ours.

    Raises CheckpointError when the file is damaged.
    """
    file = directory / OURS
    if not file.exists():
        return {}
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        if about["template"]["name"] != CHAT:
            _template_of(about["template"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged ({type(error).__name__}: {error})") from error
    return about


def _hf_generation(settings: Mapping[str, Any]) -> dict[str, Any]:
    values = {"max_new_tokens": settings["max_new_tokens"], "repetition_penalty": settings["repetition_penalty"]}
    if settings["temperature"] == 0:
        return {**values, "do_sample": False}
    # transformers cuts to the 50 most likely tokens unless told otherwise; 0 is its way to say no cut.
    cuts = {"top_k": settings["top_k"] or 0, "top_p": 1.0 if settings["top_p"] is None else settings["top_p"]}
    return {**values, "do_sample": True, "temperature": settings["temperature"], **cuts}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
