"""Generation in half precision: bf16 copies of the weights, made once and laid out for the device's products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.device import multiplies_in_bf16
from instruct_lit.core.model.gpt import MLP

ROWS = 64  # the number of rows that packed weights are laid out for; others work as well

Product = Callable[[Tensor], Tensor]


class BF16Weights:
    """Copies in bf16 of a model's linear layers and of its head; the model's own weights stay as they are.

    Inside `in_use` the layers multiply with the copies and everything else runs under autocast, so the numbers are
    those of a validation in `bf16-mixed`. On a CPU with bf16 the copies are packed in the order in which its matrix
    library reads them; otherwise it would sort them anew for every token. Weights that change later are not seen.
    """

    @torch.no_grad()
    def __init__(self, model: CausalLM) -> None:
        self.head = _product(model.head_weight, None)
        self._device = model.head_weight.device.type
        self._products: list[tuple[nn.Module, Product]] = []
        done: set[nn.Module] = set()
        for module in model.modules():
            if type(module) is MLP and type(module.fc) is type(module.proj) is nn.Linear:
                self._products.append((module, _mlp(module.fc, module.proj)))
                done |= {module.fc, module.proj}
            elif type(module) is nn.Linear and module not in done and module.weight is not model.head_weight:
                self._products.append((module, _product(module.weight, module.bias)))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the model multiply with the copies."""
        before = [module.__dict__.get("forward") for module, _ in self._products]
        for module, product in self._products:
            module.forward = product
        try:
            with torch.autocast(self._device, torch.bfloat16):
                yield
        finally:
            for (module, _), forward in zip(self._products, before, strict=True):
                del module.forward
                if forward is not None:
                    module.forward = forward


def can_pack(weight: Tensor) -> bool:
    """Whether torch has products with packed weights here, which its compiler uses on CPUs."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    here = weight.device.type == "cpu" and multiplies_in_bf16()
    return here and all(hasattr(torch.ops.mkldnn, name) for name in names)


def _product(weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Product:
    """The function x ↦ x·weightᵀ + bias in bf16, followed by GELU or not."""
    half = weight.detach().to(torch.bfloat16)
    added = None if bias is None else bias.detach().to(torch.bfloat16)
    if can_pack(weight):
        packed = torch.ops.mkldnn._reorder_linear_weight(half, ROWS)
        name, form = ("gelu", "tanh") if gelu else ("none", "")
        return lambda x: torch.ops.mkldnn._linear_pointwise(x.to(torch.bfloat16), packed, added, name, [], form)
    if gelu:
        return lambda x: F.gelu(F.linear(x.to(torch.bfloat16), half, added), approximate="tanh")
    return lambda x: F.linear(x.to(torch.bfloat16), half, added)


def _mlp(fc: nn.Linear, proj: nn.Linear) -> Product:
    """Both layers of an MLP: torch's GELU takes as long as the product before it where it is not part of it."""
    inner, outer = _product(fc.weight, fc.bias, gelu=True), _product(proj.weight, proj.bias)
    return lambda x: outer(inner(x))
