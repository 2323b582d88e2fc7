"""Tensors made once per process: never those of a mode that passes."""

import functools
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import torch

Key = TypeVarTuple("Key")
R = TypeVar("R")


def cached(maxsize: int | None) -> Callable[[Callable[[*Key], R]], Callable[[*Key], R]]:
    """``lru_cache`` for a function of hashable values and, last, a device, whose result holds or judges tensors of it.

    Inside ``FakeTensorMode`` or a transform of ``torch.func`` it is called without the cache; what is made in
    ``inference_mode`` is made as outside of it.
    """

    def decorate(function: Callable[[*Key], R]) -> Callable[[*Key], R]:
        def lasting(*key: *Key) -> R:
            with torch.inference_mode(False):
                return function(*key)

        kept = functools.lru_cache(maxsize)(lasting)

        @functools.wraps(function)
        def call(*key: *Key) -> R:
            return function(*key) if _passing(key) else kept(*key)

        call.cache_clear = kept.cache_clear  # type: ignore[attr-defined]
        return call

    return decorate


def _passing(key: tuple[object, ...]) -> bool:
    """Whether tensors made here are not tensors outside: seen on one without entries, the cheapest there is."""
    device = key[-1]
    assert isinstance(device, torch.device)
    probe = torch.empty(0, device=device)
    return type(probe) is not torch.Tensor or torch._C._functorch.is_functorch_wrapped_tensor(probe)
