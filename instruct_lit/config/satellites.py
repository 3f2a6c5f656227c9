"""Which satellites of the core are installed: a folder of `instruct_lit` that was deleted is not used."""

import importlib.util


def has_satellite(name: str) -> bool:
    """Whether the folder `instruct_lit/<name>` exists."""
    return importlib.util.find_spec(f"instruct_lit.{name}") is not None
