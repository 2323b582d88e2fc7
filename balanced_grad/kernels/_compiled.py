from collections.abc import Callable, Hashable
from functools import cache
from types import FunctionType
from typing import Any

import torch


@cache
def compiled(function: Callable[..., Any], *kind: Hashable) -> Callable[..., Any]:
    """``torch.compile`` of a pass, once per kind of input (number of rows, dtypes, options) and for any length.

    A kind has a code object of its own: torch allows each only so many compilations, and then silently runs it eagerly.
    """
    assert isinstance(function, FunctionType)
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    return torch.compile(own, dynamic=True)
