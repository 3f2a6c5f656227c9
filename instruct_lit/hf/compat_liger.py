"""Liger's Triton kernels in a model of transformers: norms, gated activations and rotary embeddings in one kernel each.

Undocumented: `_apply_liger_kernel_to_instance` and its table of architectures, with which transformers' own `Trainer`
applies them. It also changes classes and functions for all models of the process, which is undone here: each
module of this model has its kernel, and its own code where the tensors are not on a GPU.
"""

import sys
from collections.abc import Callable
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor

from instruct_lit.errors import ConfigError
from instruct_lit.optional_imports import load

ROTARY = "apply_rotary_pos_emb"


def use_liger(hf: Any) -> None:
    """Let a model compute with Liger's kernels on a CUDA GPU, with its own code elsewhere.

    Raises: ConfigError if the package is not installed or has no kernels for the architecture.
    """
    liger = load("liger_kernel.transformers.monkey_patch", "model.liger=true", "liger")
    architecture = hf.config.model_type
    if architecture not in liger.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ConfigError(f"model.liger=true: Liger has no kernels for {architecture}; leave it out")
    code = vars(sys.modules[type(hf).__module__])
    before = dict(code)
    try:
        liger._apply_liger_kernel_to_instance(hf, cross_entropy=False, fused_linear_cross_entropy=False)
        rotary: Any = code.get(ROTARY)
    finally:
        code.update(before)
    classes: dict[type, type] = {}
    for module in hf.base_model.modules():
        kernel, kind = vars(module).get("forward"), type(module)
        names = getattr(getattr(kind.forward, "__code__", None), "co_names", ())
        if kernel is not None:
            module.forward = partial(_on_gpu, kernel, MethodType(kind.forward, module))
        elif ROTARY in names and rotary is not before.get(ROTARY):
            module.__class__ = classes[kind] = classes.get(kind) or _with_rotary(kind, rotary)


def _on_gpu(kernel: Callable[..., Any], plain: Callable[..., Any], x: Tensor, *inputs: Any, **named: Any) -> Any:
    return (kernel if _runs_kernels(x) else plain)(x, *inputs, **named)


def _runs_kernels(x: Tensor) -> bool:
    return x.is_cuda


def _with_rotary(kind: Any, kernel: Callable[..., Any]) -> type:
    """A subclass of an attention whose forward pass rotates by `kernel`."""
    plain = kind.forward
    names = {**plain.__globals__, ROTARY: partial(_on_gpu, kernel, plain.__globals__[ROTARY])}
    forward = FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__, plain.__closure__)
    return type(kind.__name__, (kind,), {"forward": forward})
