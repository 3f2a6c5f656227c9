"""The states of a model that is trained in part: a checkpoint holds what is trained, the rest is the base's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def trained_part(state_dict: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """The part of a state that training changes: all of it, or where parameters are frozen the trained ones alone."""
    if all(p.requires_grad for p in module.parameters()):
        return dict(state_dict)
    # Both names of a tied matrix: loading the old value under one of them would undo the other.
    trained = {name for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    return {name: value for name, value in state_dict.items() if name in trained}


def completed(state_dict: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """The state with the module's own frozen parameters, which a checkpoint does not hold."""
    own = module.state_dict()
    # The scales of 4-bit weights are in the state too, but nothing loads them there.
    loadable = {n for n, _ in (*module.named_parameters(remove_duplicate=False), *module.named_buffers())}
    frozen = (own.keys() & loadable) - trained_part(own, module).keys()
    return {**{name: own[name] for name in frozen}, **state_dict}
