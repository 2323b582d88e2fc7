"""Numbers that may live on a device: plain floats where reading them costs nothing, else tensors nobody waits for.

Arithmetic is the same for both; what floats and tensors spell differently is here.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

Number = float | Tensor


def on_host(*values: Tensor) -> bool:
    """Whether reading these waits for no device."""
    return all(value.is_cpu for value in values)


def numbers(values: Tensor | Iterable[Tensor]) -> list[Number]:
    """A row ``(K,)``, or ``K`` scalars, as floats on the host, as ``()`` tensors elsewhere."""
    if isinstance(values, Tensor):
        return values.tolist() if on_host(values) else list(values.unbind())
    scalars = list(values)
    return [value.item() for value in scalars] if on_host(*scalars) else list(scalars)


def tensor(values: Iterable[Number], like: Tensor) -> Tensor:
    """Numbers in a row, in the dtype and on the device of ``like``."""
    row = list(values)
    if on_host(like):
        return torch.tensor(row, dtype=like.dtype, device="cpu")
    return torch.stack([value if isinstance(value, Tensor) else like.new_full((), value) for value in row])


def beside(other: Number, value: Number) -> Number:
    """A number of a loaded state as the kind that it meets: a float beside a float, else a tensor on that device."""
    if isinstance(other, Tensor):
        return value.to(other.device) if isinstance(value, Tensor) else other.new_full((), value)
    return float(value)


def where(condition: Any, first: Number, second: Number) -> Number:
    """``first`` if the condition holds, else ``second``."""
    if isinstance(condition, Tensor):
        return torch.where(condition, first, second)
    return first if condition else second


def square(value: Number) -> Number:
    """Infinite where it overflows: a float's ** raises there."""
    return value * value


def at_least(value: Number, bound: float) -> Number:
    """The larger of both."""
    return value.clamp_min(bound) if isinstance(value, Tensor) else max(value, bound)


def at_most(value: Number, bound: float) -> Number:
    """The smaller of both."""
    return value.clamp_max(bound) if isinstance(value, Tensor) else min(value, bound)


def is_finite(value: Number) -> Any:
    """Whether it is neither infinite nor NaN: a bool or a boolean tensor."""
    return value.isfinite() if isinstance(value, Tensor) else math.isfinite(value)
