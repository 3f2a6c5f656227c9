"""Configurations as the command line composes them."""

import functools
import importlib

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from instruct_lit.config.compose import CONF, register


def schema_of(command: str) -> type:
    """The schema of a command stands in its module: `TrainConfig` in `instruct_lit.train`."""
    return getattr(importlib.import_module(f"instruct_lit.{command}"), f"{command.title()}Config")


def composed(command: str, *overrides: str, hydra: bool = False) -> DictConfig:
    """The configuration of `python -m instruct_lit.<command> <overrides>`, with Hydra's own settings if wanted."""
    _register(command)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(command, list(overrides), return_hydra_config=hydra)


@functools.cache
def _register(command: str) -> None:
    register(command, schema_of(command))
