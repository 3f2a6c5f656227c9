"""Generation in half precision: bf16 copies of the weights, made once in the memory order of the device's products."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instruct_lit.accel.compat_torch import has_packed_products, packed_linear, packed_weight
from instruct_lit.accel.forwards import ReplacedForwards
from instruct_lit.accel.shared_casts import Casts
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.gpt import MLP

ROWS = 64  # number of rows that packed weights are optimised for; others work as well

Product = Callable[[Tensor], Tensor]


class BF16Weights:
    """bf16 copies of the weights of a model's linear layers and of its head (`instruct_lit.core.generation.engine`).

    Inside `in_use` the layers multiply with the copies and everything else runs under autocast, so the numbers are
    those of a validation in `bf16-mixed`. On a CPU with bf16 products the copies are packed in the order in which its
    matrix library reads them, which saves reordering for every token. Later changes of the model are not copied.
    """

    dtype = torch.bfloat16

    @torch.no_grad()
    def __init__(self, model: CausalLM) -> None:
        self.head = _product(model.head_weight, None, casts := Casts())
        self._device = model.head_weight.device.type
        products: dict[nn.Module, Product] = {}
        done: set[nn.Module] = set()
        for module in model.modules():
            if type(module) is MLP and type(module.fc) is type(module.proj) is nn.Linear:
                products[module] = _mlp(module.fc, module.proj, casts)
                done |= {module.fc, module.proj}
            elif type(module) is nn.Linear and module not in done and module.weight is not model.head_weight:
                products[module] = _product(module.weight, module.bias, casts)
        self._products = ReplacedForwards(products)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Multiply with the copies inside this context."""
        with self._products, torch.autocast(self._device, torch.bfloat16):
            yield


def can_pack(weight: Tensor) -> bool:
    """Whether torch has products with packed weights for this device."""
    return weight.device.type == "cpu" and has_packed_products()


def _product(weight: Tensor, bias: Tensor | None, casts: Casts, gelu: bool = False) -> Product:
    """The function x ↦ x·weightᵀ + bias in bf16, followed by GELU if wanted."""
    half = weight.detach().to(torch.bfloat16)
    half_bias = None if bias is None else bias.detach().to(torch.bfloat16)
    if can_pack(weight):
        packed = packed_weight(half, ROWS)
        return lambda x: packed_linear(casts(x, torch.bfloat16), packed, half_bias, gelu)
    if gelu:
        return lambda x: F.gelu(F.linear(casts(x, torch.bfloat16), half, half_bias), approximate="tanh")
    return lambda x: F.linear(casts(x, torch.bfloat16), half, half_bias)


def _mlp(fc: nn.Linear, proj: nn.Linear, casts: Casts) -> Product:
    """Both layers of an MLP: a separate GELU takes as long as the product before it."""
    inner, outer = _product(fc.weight, fc.bias, casts, gelu=True), _product(proj.weight, proj.bias, casts)
    return lambda x: outer(inner(x))
