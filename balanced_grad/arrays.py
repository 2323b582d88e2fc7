"""Arrays that may live on a device: NumPy's where that waits for nothing, at a tenth of the price, else tensors.

A method works on a few numbers in many operations, each of which costs a tensor ten times its arithmetic. Where both
kinds spell an operation alike it is written so (``+ * @ == ~ & ** [..., None] diagonal(0, -2, -1) any(-1)``); the rest
is here. Reductions are over the last dimension and keep it.
"""

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Array: TypeAlias = Any
"""A tensor or an array of NumPy's, which have no type in common."""

ignoring_errors = np.errstate(all="ignore")
"""As a decorator: infinite and undefined numbers pass through without a warning, as they do in tensors."""


def of(values: Tensor) -> Array:
    """The same numbers; not to be written to."""
    return values.detach().numpy() if values.is_cpu else values


def tensor(values: Array) -> Tensor:
    """Back again."""
    return values if isinstance(values, Tensor) else torch.from_numpy(values)


def where(condition: Array, first: Array, second: Array) -> Array:
    """``first`` where the condition holds, ``second`` elsewhere."""
    choose: Any = torch.where if isinstance(condition, Tensor) else np.where
    return choose(condition, first, second)


def largest(values: Array) -> Array:
    """NaN where there is one."""
    return values.amax(-1, keepdim=True) if isinstance(values, Tensor) else values.max(-1, keepdims=True)


def total(values: Array) -> Array:
    """Of booleans, how many are true."""
    return values.sum(-1, keepdim=True) if isinstance(values, Tensor) else values.sum(-1, keepdims=True)


def at_least(values: Array, bound: Array) -> Array:
    """The larger of both; NaN where the value is."""
    return values.clamp(min=bound) if isinstance(values, Tensor) else np.maximum(values, bound)


def at_most(values: Array, bound: Array) -> Array:
    """The smaller of both; NaN where the value is."""
    return values.clamp(max=bound) if isinstance(values, Tensor) else np.minimum(values, bound)


def is_finite(values: Array) -> Array:
    """Neither infinite nor NaN."""
    return values.isfinite() if isinstance(values, Tensor) else np.isfinite(values)


def ones_like(values: Array) -> Array:
    """Of the same shape and kind."""
    return torch.ones_like(values) if isinstance(values, Tensor) else np.ones_like(values)
