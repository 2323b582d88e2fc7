"""Lengths that a Gramian tells. Every function takes arrays of either kind; a last dimension of 1 is kept."""

from balanced_grad import arrays
from balanced_grad.arrays import Array


def squares(gramian: Array) -> Array:
    """Squared norms ``(..., K)``."""
    return gramian.diagonal(0, -2, -1)


def taking_part(gramian: Array) -> Array:
    """Losses with a gradient, ``(..., K)`` bool: all but the zero rows. NaN takes part: it must reach the weights."""
    return ~(squares(gramian) == 0)


def of_unit_size(gramian: Array) -> Array:
    """The Gramian over its largest diagonal entry: its products stay in the range of the numbers."""
    largest = arrays.largest(squares(gramian))
    usable = (largest > 0) & arrays.is_finite(largest)
    return gramian / arrays.where(usable, largest, 1.0)[..., None]


def norm(gramian: Array, weights: Array) -> Array:
    """Length of ``Σ_k w_k g_k``, read off the Gramian: ``(..., K, K)`` and ``(..., K)`` to ``(..., 1)``."""
    square = (weights[..., None, :] @ gramian @ weights[..., None])[..., 0]
    return arrays.at_least(square, 0.0) ** 0.5


def growth(gramian: Array, short: Array, long: Array) -> Array:
    """Factor ``(..., 1)`` that gives the combination ``short`` the length of the combination ``long``.

    1 where ``short`` vanishes up to rounding: a stationary point has no direction to lengthen.
    """
    gramian = of_unit_size(gramian)
    length = norm(gramian, short)
    vanishing = length <= 1e-7 * arrays.largest(squares(gramian)) ** 0.5
    return arrays.where(vanishing, 1.0, norm(gramian, long) / length)
