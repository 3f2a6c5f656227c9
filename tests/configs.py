"""Configurations as the command line composes them."""

from omegaconf import DictConfig

from instruct_lit.config import compose


def composed(command: str, *overrides: str, hydra: bool = False) -> DictConfig:
    """The configuration of `python -m instruct_lit.<command> <overrides>`, with Hydra's own settings if `hydra`."""
    return compose.composed(command, overrides, hydra)
