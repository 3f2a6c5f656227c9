"""The model of a run without its weights, for the estimate of its memory."""

from typing import Any

import torch
from omegaconf import DictConfig

from instruct_lit.config import model_builders as build
from instruct_lit.config.targets import arguments_for
from instruct_lit.core.bundle import OpenedModel
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.gpt import GPT


def without_weights(config: DictConfig, opened: OpenedModel | None = None) -> CausalLM:
    """The model, or one of the shape of an opened one, as a run with its adapter trains it on this machine's device.

    For `instruct_lit.accel.estimate.counting`, inside which its weights take no memory.
    """
    build.install_satellites()
    model, kind = config.model, config.adapter.kind
    is_gpt = isinstance(opened.model, GPT) if opened is not None else model.get("kind") != "hf"
    made: CausalLM
    if is_gpt:
        shape = opened.model.config if opened is not None else build.shape_of(config)
        made = GPT(shape, **arguments_for(GPT, model))
    else:
        from instruct_lit.hf.files import computes_in_bf16, import_transformers, load_hf
        from instruct_lit.hf.model import HFModel

        wanted = model.get("dtype", "auto")
        is_half = kind != "none" and (wanted == "bfloat16" or (wanted == "auto" and computes_in_bf16()))
        dtype = torch.bfloat16 if is_half else torch.float32
        if opened is None:
            given = arguments_for(load_hf, model) | {"pretrained": False, "dtype": dtype, "liger": False}
            made = load_hf(build.hf_source(config), **given)
        else:
            hf: Any = opened.model.hf
            hf = import_transformers().AutoModelForCausalLM.from_config(hf.config, dtype=dtype)
            made = HFModel(hf, **arguments_for(HFModel, model))
    if kind != "none":
        from instruct_lit.hf.adapters import Adapter

        Adapter(made, **arguments_for(Adapter, config.adapter), dora=kind == "dora")
    return made
