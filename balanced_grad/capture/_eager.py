import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """Keep a function out of compiled graphs, as ``torch.compiler.disable`` does.

    That decorator loads the compiler where it is written, which doubles the time of ``import balanced_grad``.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return _broken_out(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return call


def _broken_out(function: Callable[P, R]) -> Callable[P, R]:
    torch._dynamo.graph_break()
    return torch.compiler.disable(function)  # type: ignore[no-any-return, no-untyped-call]
