"""Which parameters of a model are trained; the others are frozen."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from instruct_lit.core.model.causal import CausalLM
from instruct_lit.errors import ConfigError

LAST_BLOCKS = re.compile(r"last_(\d+)_blocks?")


def choose_trainable(model: CausalLM, trainable: str) -> None:
    """Freeze all but what `trainable` names.

    `all`; `head`, the output projection (with the token embedding, where the two are one matrix); `last_<n>_blocks`, so
    many blocks and the norm behind them; otherwise a pattern for parameter names with `*`. Raises ConfigError when
    nothing has such a name.
    """
    named = dict(model.named_parameters())
    last = LAST_BLOCKS.fullmatch(trainable)
    if trainable == "all":
        return
    if trainable == "head":
        chosen = model.head_parameters
    elif last:
        n, n_blocks = int(last[1]), len(model.blocks)
        if not 0 < n <= n_blocks:
            raise ConfigError(f"trainable={trainable}: the model has {n_blocks} blocks")
        chosen = [*model.blocks[n_blocks - n :].parameters(), *model.final_norm.parameters()]
    else:
        chosen = [p for name, p in named.items() if fnmatchcase(name, trainable)]
        if not chosen:
            raise ConfigError(
                f"trainable={trainable}: no parameter has such a name. Allowed are all, head, last_<n>_blocks and "
                f"patterns with * for names like {', '.join(list(named)[2:6])}"
            )
    wanted = {id(p) for p in chosen}
    for parameter in named.values():
        parameter.requires_grad_(id(parameter) in wanted)
