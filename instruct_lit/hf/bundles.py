"""Bundles of models of transformers, and of adapters on any base model (`instruct_lit.core.bundle.ModelFamily`)."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from instruct_lit.core.bundle import BundleParts, stored_template
from instruct_lit.core.data.template import CHAT, Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer, Tokenizer
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.pretrained import load_gpt
from instruct_lit.errors import CheckpointError, ConfigError, DownloadError
from instruct_lit.hf import compat_peft
from instruct_lit.hf.adapters import CONFIG, Adapter, open_adapter, read_adapter_config
from instruct_lit.hf.chat_template import with_chat
from instruct_lit.hf.chat_template_export import chat_template
from instruct_lit.hf.files import import_transformers, read_hf, write_hf
from instruct_lit.hf.model import HFModel
from instruct_lit.hf.older_readers import spell_for_transformers_4
from instruct_lit.hf.tokenizer import HFTokenizer, has_other_tokenizer


class HFBundles:
    """The family of transformers' models."""

    kind = "hf"

    def owns(self, part: CausalLM | Tokenizer) -> bool:
        return isinstance(part, HFModel | HFTokenizer)

    def save(
        self, directory: Path, parts: BundleParts, generation: Mapping[str, Any], dtype: torch.dtype | None
    ) -> None:
        model, tokenizer, template = parts
        assert isinstance(model, HFModel) and isinstance(tokenizer, HFTokenizer)
        # The text of our own templates does not have what the tokenizer puts before every text.
        start = "" if template.name == CHAT else tokenizer.hf.decode(list(tokenizer.prompt_start))
        jinja = template.text if template.name == CHAT else chat_template(template, start, tokenizer.end)
        write_hf(directory, model, tokenizer, jinja, generation, dtype)

    def save_tokenizer(self, directory: Path, tokenizer: Tokenizer) -> None:
        assert isinstance(tokenizer, HFTokenizer)
        tokenizer.hf.save_pretrained(directory)

    def reads(self, directory: Path, about: Mapping[str, Any]) -> bool:
        return (directory / CONFIG).is_file() or _needs_transformers(directory, about)

    def open(
        self, directory: Path, about: Mapping[str, Any], template: Template | None, merge: bool, as_stored: bool
    ) -> BundleParts:
        base = read_adapter_config(directory)["base_model_name_or_path"] if (directory / CONFIG).is_file() else None
        if not _needs_transformers(Path(base or directory), about):
            template = template or stored_template(directory, about)
            gpt = load_gpt(path=base or directory)
            _put_adapter(directory, gpt, base, merge)
            return gpt, GPT2Tokenizer(), template
        try:
            model, tokenizer = read_hf(directory, base, as_stored)
        except DownloadError as error:  # of the base, since the directory is a folder
            raise CheckpointError(
                f"{directory / CONFIG}: base_model_name_or_path={base} is neither a folder here nor a reachable "
                "repository of the hub; write there where the base model lies"
            ) from error
        _put_adapter(directory, model, base, merge)
        if template is None and about.get("template", {"name": CHAT})["name"] == CHAT:
            tokenizer, template = with_chat(tokenizer)
        template = template or stored_template(directory, about)
        if about.get("markup") and template.name != CHAT:  # special tokens that the run has added
            tokenizer = HFTokenizer(tokenizer.hf, markup=True)
            template = template.for_tokenizer(tokenizer)
        return model, tokenizer, template


def _put_adapter(directory: Path, model: CausalLM, base: str | None, merge: bool) -> None:
    if base is not None:
        adapter = open_adapter(directory, model)
        if merge:
            adapter.merge()


def _needs_transformers(directory: Path, about: Mapping[str, Any]) -> bool:
    """Whether the model is one of transformers': as our file says, without it all but GPT-2 with GPT-2's tokenizer."""
    if about:
        return about.get("kind", "gpt2") == "hf"
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return not directory.is_dir()  # the base of an adapter may be on the hub
    except (OSError, ValueError, RecursionError):  # reported when the weights are read
        return False
    is_other = isinstance(config, dict) and config.get("model_type", "gpt2") != "gpt2"
    return is_other or has_other_tokenizer(directory)


def check_opens(directory: Path, model: HFModel, dtype: torch.dtype, adapter: Adapter | None = None) -> None:
    """Write the configuration of a bundle without weights, and make the model of it on the meta device.

    Args:
        dtype: of the weights that the bundle will have.
        adapter: what the bundle will have in their place; the directory has its configuration.

    Raises:
        ConfigError: transformers makes a model with other tensors, or peft another base or adapts other layers.
    """
    transformers, config = import_transformers(), model.hf.config
    if adapter is not None and model.is_text_part:
        raise ConfigError(
            f"adapter.merge=false: the base model reads more than text, and only its {model.config.architecture} is "
            "trained, on which other programs would not find the adapter; use adapter.merge=true"
        )
    if getattr(config, "auto_map", None):  # code of a repository, which is not run for this
        return
    try:
        if adapter is None:
            model.hf.save_pretrained(directory, state_dict={})
            spell_for_transformers_4(directory, model.config.context_length, dtype)
            config = transformers.AutoConfig.from_pretrained(directory)  # nosec B615 (a local folder)
        plain = copy.deepcopy(config)
        if is_quantized := getattr(plain, "quantization_config", None) is not None:
            del plain.quantization_config
        with torch.device("meta"):
            made = transformers.AutoModelForCausalLM.from_config(plain)
    except Exception as error:  # classes of any architecture may reject anything
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise ConfigError(
            f"before training: the config.json of a bundle of {model.config.architecture} cannot be written so that "
            f"transformers opens it ({message}); nothing has been trained yet"
        ) from error
    if adapter is not None:
        missing = set(adapter.layers) - compat_peft.layers_of_peft(made, directory)
        if missing:
            names = ", ".join(sorted({name.rpartition(".")[2] for name in missing}))
            raise ConfigError(
                f"adapter.merge=false: peft does not open updates of {names} on {model.config.architecture}, where it "
                "takes these names for those of experts; use adapter.merge=true, or other adapter.targets"
            )
    elif not is_quantized and (different := _shapes(made).items() ^ _shapes(model.hf).items()):
        raise ConfigError(
            f"model: transformers makes another {model.config.architecture} of the config.json that it writes itself "
            f"({min(name for name, _ in different)} differs, for example); choose another model"
        )


def _shapes(hf: Any) -> dict[str, torch.Size]:
    """The shape of each tensor of a model that has an adapter or none."""
    return {name.replace(".base_layer.", "."): x.shape for name, x in hf.state_dict().items() if ".lora_" not in name}
