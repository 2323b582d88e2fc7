import torch
from torch import Tensor


def taking_part(gramian: Tensor) -> Tensor:
    """Losses with a gradient, ``(..., K)`` bool: all but the zero rows. NaN takes part: it must reach the weights."""
    return ~(gramian.diagonal(dim1=-2, dim2=-1) == 0)


def of_unit_size(gramian: Tensor) -> Tensor:
    """The Gramian over its largest diagonal entry: its products stay in the range of the numbers."""
    largest = gramian.diagonal(dim1=-2, dim2=-1).amax(-1)
    usable = (largest > 0) & largest.isfinite()
    return gramian / torch.where(usable, largest, 1.0)[..., None, None]


def norm(gramian: Tensor, weights: Tensor) -> Tensor:
    """Length of ``Σ_k w_k g_k``, read off the Gramian: ``(..., K, K)`` and ``(..., K)`` to ``(...)``."""
    square = (weights.unsqueeze(-2) @ gramian @ weights.unsqueeze(-1)).squeeze((-2, -1))
    return square.clamp_min(0).sqrt()


def growth(gramian: Tensor, short: Tensor, long: Tensor) -> Tensor:
    """Factor that gives the combination ``short`` the length of the combination ``long``.

    1 where ``short`` vanishes up to rounding: a stationary point has no direction to lengthen.
    """
    gramian = of_unit_size(gramian)
    length = norm(gramian, short)
    vanishing = length <= 1e-7 * gramian.diagonal(dim1=-2, dim2=-1).amax(-1).sqrt()
    return torch.where(vanishing, torch.ones_like(length), norm(gramian, long) / length)
