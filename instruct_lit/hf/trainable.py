"""Choose the parameters that are trained; the others are frozen."""

import re
from fnmatch import fnmatchcase

from instruct_lit.core.model.causal import CausalLM
from instruct_lit.errors import ConfigError


def choose_trainable(model: CausalLM, trainable: str) -> None:
    """Freeze all parameters but those that `trainable` names.

    `all`; `head`: the output projection, with a tied token embedding; `last_<n>_blocks`: with the final norm; otherwise
    a pattern with `*` for parameter names. Raises ConfigError when no parameter matches.
    """
    named, n_blocks = dict(model.named_parameters()), len(model.blocks)
    last = re.fullmatch(r"last_(\d+)_blocks?", trainable)
    if last and not 0 < int(last[1]) <= n_blocks:
        raise ConfigError(f"trainable={trainable}: the model has {n_blocks} blocks")
    if trainable == "head":
        chosen = model.head_parameters
    elif last:
        chosen = [*model.blocks[n_blocks - int(last[1]) :].parameters(), *model.final_norm.parameters()]
    else:
        chosen = [p for name, p in named.items() if trainable == "all" or fnmatchcase(name, trainable)]
    if not chosen:
        raise ConfigError(
            f"trainable={trainable}: no parameter matches; allowed are all, head, last_<n>_blocks and patterns with * "
            f"for names like {', '.join(list(named)[2:6])}"
        )
    chosen_ids = {id(p) for p in chosen}
    for parameter in named.values() if trainable != "all" else ():
        parameter.requires_grad_(id(parameter) in chosen_ids)


def train_in_fp32(model: CausalLM) -> None:
    """Convert trained parameters to fp32; frozen ones keep the precision in which they were opened."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
