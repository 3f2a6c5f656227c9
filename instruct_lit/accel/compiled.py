"""Functions compiled by `torch.compile`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


@cache
def compiled_form(function: Function) -> Function:
    """A function of tensors and modules compiled by `torch.compile`, for any number of tokens."""
    compiled: Any = torch.compile(function, dynamic=True)
    return compiled
