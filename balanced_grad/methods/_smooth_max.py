import math

import torch
from torch import Tensor


def smooth_max(values: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    r"""Centred smooth maximum of the finite values, and its gradient.

    .. math:: \mu \log \frac1n \sum_i e^{v_i / \mu}, \qquad p_i = \frac{e^{v_i/\mu}}{\sum_j e^{v_j/\mu}}

    lies in :math:`[\max v - \mu \log n, \max v]`. :math:`\mu = 0` is the maximum with ties shared evenly,
    :math:`\mu = \infty` the mean. Non-finite values take no part; without a finite one both results are 0.

    Args:
        values: ``(M,)``, M >= 1.
        smoothing: :math:`\mu \ge 0`, in units of the values.

    Returns:
        The value, a scalar, and the weights ``(M,)`` that sum to 1.
    """
    finite = values.isfinite()
    count = finite.sum().clamp_min(1)
    safe = torch.where(finite, values, torch.zeros_like(values))
    if smoothing == math.inf:
        return safe.sum() / count, finite / count
    top = torch.where(finite, values, torch.full_like(values, -math.inf)).max()
    if smoothing < torch.finfo(values.dtype).tiny:
        spread = (finite & (values == top)).to(values.dtype)
        soft = torch.zeros_like(top)
    else:
        spread = torch.where(finite, ((safe - top) / smoothing).exp(), torch.zeros_like(values))
        soft = smoothing * (spread.sum() / count).log()
    value = torch.where(top.isfinite(), top + soft, torch.zeros_like(top))
    return value, spread / spread.sum().clamp_min(1)  # the largest term is 1
