import math
from collections.abc import Sequence

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float32).tiny  # below this, smoothing is no smoothing


def smooth_max(values: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Centred smooth maximum of the finite values, and its gradient.

        μ log( (1/n) Σ_i exp(v_i / μ) ),   p_i = exp(v_i / μ) / Σ_j exp(v_j / μ)

    lies in ``[max v - μ log n, max v]``. ``μ = 0`` is the maximum with ties shared evenly,
    ``μ = ∞`` the mean. Non-finite values take no part; without a finite one both results are 0.

    Args:
        values: ``(M,)``, M >= 1.
        smoothing: ``μ ≥ 0``, in units of the values.

    Returns:
        The value, a scalar, and the weights ``(M,)`` that sum to 1.
    """
    finite = values.isfinite()
    count = finite.sum().clamp_min(1)
    safe = torch.where(finite, values, torch.zeros_like(values))
    if smoothing == math.inf:
        return safe.sum() / count, finite.to(values) / count
    top = torch.where(finite, values, torch.full_like(values, -math.inf)).max()
    if smoothing < _TINY:
        spread = (finite & (values == top)).to(values.dtype)
        soft = torch.zeros_like(top)
    else:
        spread = torch.where(finite, ((safe - top) / smoothing).exp(), torch.zeros_like(values))
        soft = smoothing * (spread.sum() / count).log()
    value = torch.where(top.isfinite(), top + soft, torch.zeros_like(top))
    return value, spread / spread.sum().clamp_min(1)  # the largest term is 1


def smooth_max_on_host(values: Sequence[float], smoothing: float) -> tuple[float, list[float]]:
    """``smooth_max`` in plain floats: ten times faster than small tensors where these are on the CPU."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, [0.0] * len(values)
    if smoothing == math.inf:
        return sum(finite) / len(finite), [math.isfinite(value) / len(finite) for value in values]
    top = max(finite)

    def spread(value: float) -> float:
        if not math.isfinite(value):
            return 0.0
        return float(value == top) if smoothing < _TINY else math.exp((value - top) / smoothing)

    spreads = [spread(value) for value in values]
    total = sum(spreads)
    soft = 0.0 if smoothing < _TINY else smoothing * math.log(total / len(finite))
    return top + soft, [value / total for value in spreads]
