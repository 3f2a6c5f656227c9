"""Forward passes in place of those of modules, for a while."""

from collections.abc import Callable, Mapping
from typing import Any, Self

from torch import nn

Forward = Callable[..., Any]


class ReplacedForwards:
    """Forward passes that modules have from `attach` to `detach`, which restores what was there, or inside a `with`."""

    def __init__(self, forwards: Mapping[nn.Module, Forward]) -> None:
        self.forwards = forwards
        self._before: list[Any] = []

    def attach(self) -> Self:
        """Replace them from now on."""
        self._before = [vars(module).get("forward") for module in self.forwards]
        for module, forward in self.forwards.items():
            module.forward = forward  # type: ignore[method-assign]
        return self

    def detach(self) -> None:
        """Restore the modules."""
        for module, before in zip(self.forwards, self._before, strict=False):
            del module.forward
            if before is not None:
                module.forward = before
        self._before = []

    __enter__ = attach

    def __exit__(self, *error: object) -> None:
        self.detach()
