"""AdamW with moments of 8 bits."""

from typing import Any

from torch.optim import Optimizer

from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.training.optimizer import parameter_groups
from instruct_lit.errors import ConfigError


def adamw_8bit(
    model: CausalLM,
    lr: float,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Optimizer:
    """AdamW with moments of 8 bits (Dettmers et al. 2022, through bitsandbytes); those of the embeddings have 32.

    Raises ConfigError if bitsandbytes is missing.
    """
    bitsandbytes = need_bitsandbytes()
    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    in_blocks = {id(p) for p in model.blocks.parameters()}
    # Rare tokens make outliers in the moments (section 2.3 of the paper).
    for table in [p for p in model.parameters() if p.ndim == 2 and id(p) not in in_blocks]:
        manager.register_parameters([table])
        manager.override_config(table, "optim_bits", 32)
    groups = parameter_groups(model.named_parameters(), weight_decay)
    return bitsandbytes.optim.AdamW8bit(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps)


def need_bitsandbytes() -> Any:
    """The module bitsandbytes. Raises ConfigError if it is missing."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise ConfigError("optimizer=adamw_8bit: needs bitsandbytes; pip install bitsandbytes") from error
    return bitsandbytes
