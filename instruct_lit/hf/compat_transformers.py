"""Undocumented parts of transformers that this package uses, each with the reason.

`tests/hf/test_compat_transformers.py` names the part that a new version lacks.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def attention_name(hf: Any) -> str:
    """The name of a model's attention function in the registry.

    Undocumented: `config._attn_implementation`. `set_attn_implementation` is public, but no public attribute has the
    current name, to which a model is reset.
    """
    return hf.config._attn_implementation


def register_attention(name: str, function: Callable[..., tuple[Tensor, None]]) -> None:
    """Register an attention function whose masks are made as those of `sdpa`.

    Undocumented: `masking_utils.sdpa_mask`. The registries are public, but a function without a mask function gets no
    masks.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, sdpa_mask)


def sdpa_attention(*tensors: Any, **options: Any) -> tuple[Tensor, None]:
    """transformers' own attention function on scaled_dot_product_attention, for calls without a layout.

    Undocumented: `integrations.sdpa_attention.sdpa_attention_forward`, an entry of the public registry.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(*tensors, **options)


def draw_weights(hf: Any, layer: nn.Module) -> None:
    """Draw the weights of one layer as those of the whole model are drawn.

    Undocumented: `_init_weights`, which every architecture defines; `init_weights` draws a whole model.
    """
    hf._init_weights(layer)


def forget_quantization(hf: Any) -> None:
    """Let a model that was read from a GGUF file be saved as the ordinary model that its fp32 weights make it.

    Undocumented: `hf_quantizer`, which `save_pretrained` asks; `dequantize()` does not support GGUF.
    """
    del hf.config.quantization_config
    hf.hf_quantizer = None


def forget_names(hf: Any) -> None:
    """Let a model that was read from the files of another one, of which it is a part, be saved under its own names.

    Undocumented: `_weight_conversions`, by which `save_pretrained` gives the names of those files back.
    """
    del hf._weight_conversions
