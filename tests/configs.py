"""Configurations as the command line composes them."""

import functools

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from instruct_lit.config.compose import CONF, register
from instruct_lit.config.schema import COMMANDS


def composed(command: str, *overrides: str, hydra: bool = False) -> DictConfig:
    """The configuration of `python -m instruct_lit.<command> <overrides>`, with Hydra's own settings if wanted."""
    _register(command)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(command, list(overrides), return_hydra_config=hydra)


@functools.cache
def _register(command: str) -> None:
    register(command, COMMANDS[command])
