"""Soups: the average of the weights of runs of one base model (Wortsman et al. 2022, arXiv:2203.05482)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from instruct_lit.core.bundle import OpenedModel
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.errors import ConfigError

Losses = dict[str, float]  # val/response_loss and test/response_loss of a model
MONITOR = "val/response_loss"


@torch.no_grad()
def make_soup(
    parts: Mapping[str, Callable[[], OpenedModel]], losses_of: Callable[[CausalLM], Losses], greedy: bool
) -> tuple[OpenedModel, dict[str, Any]]:
    """Average the weights of models; return the soup as the first part opened, and the losses of it and of its parts.

    Args:
        parts: what opens each part, by its name; adapters are opened merged, and one part is in memory at a time.
        greedy: parts join from the best on, each only if the validation loss does not rise; otherwise all join.

    Raises:
        ConfigError: the parts have not the same tokenizer, template and shapes.
    """
    name, *others = parts
    soup = parts[name]()
    losses = {name: losses_of(soup.model)}
    if greedy:
        losses |= {other: losses_of(parts[other]().model) for other in others}
    order = sorted(losses, key=lambda part: losses[part][MONITOR]) if greedy else list(parts)
    total: dict[str, Tensor] = {}
    members: list[str] = []
    best: Losses = {}
    for part in order:
        opened = parts[part]()
        _check_same(soup, opened, part)
        losses.setdefault(part, losses_of(opened.model))
        state = _weights(opened.model)
        candidate = {key: total[key] + value if total else value.clone() for key, value in state.items()}
        if greedy:
            _set_weights(soup.model, candidate, len(members) + 1)
            found = losses_of(soup.model)
            if best and found[MONITOR] > best[MONITOR]:
                continue
            best = found
        total, members = candidate, [*members, part]
    _set_weights(soup.model, total, len(members))
    found = losses_of(soup.model)
    about = {**soup.about, "metrics": {key.replace("response_", ""): value for key, value in found.items()}}
    method = "greedy" if greedy else "uniform"
    about["soup"] = {"method": method, "n_runs": len(parts), "n_members": len(members)}
    return replace(soup, about=about), {"method": method, "members": members, "losses": losses, "soup": found}


def _weights(model: CausalLM) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def _set_weights(model: CausalLM, total: Mapping[str, Tensor], n: int) -> None:
    for name, tensor in _weights(model).items():
        tensor.copy_(total[name] / n)


def _check_same(first: OpenedModel, other: OpenedModel, name: str) -> None:
    shapes = [_shapes(_weights(part.model)) for part in (first, other)]
    different = {
        "weights": shapes[0] != shapes[1],
        "tokenizer": first.tokenizer.fingerprint != other.tokenizer.fingerprint,
        "template": first.template.text != other.template.text,
    }
    if any(different.values()):
        what = ", ".join(key for key, differs in different.items() if differs)
        raise ConfigError(f"soup: {name} has other {what} than the first run; give runs of one base model and template")


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, str]]:
    """The shape of each tensor, and the first name of the same one: a tied head is no average of two matrices."""
    names: dict[int, str] = {}
    return {key: (tensor.shape, names.setdefault(tensor.data_ptr(), key)) for key, tensor in weights.items()}
