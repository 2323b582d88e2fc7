"""Whether weights are a minimiser: the optimality conditions row by row, and whether there is a minimum to speak of.

Both compare pure numbers. A row's product `(Gw)_i` is judged against `|g_i| Σ_j w_j |g_j|`, the size of its terms, so
that neither the unit of the gradients nor a row with a large norm decides what counts as zero.
"""

from collections.abc import Callable, Sequence
from operator import add, mul
from typing import Any

import numpy as np

from balanced_grad.solvers._active_set import Array

Matrix = Sequence[Sequence[float]]
INDEFINITE = 1e-4  # least eigenvalue of a matrix of cosines, negated, that float32 products of long rows may have
_TINY = 2.0**-1074


def bar(tol: float) -> float:
    """How far from optimal a row may be for "solved": what is left of an ill-conditioned problem's digits."""
    return max(1e-9, 256.0 * tol)


def optimal(product: Sequence[float], w: Sequence[float], roots: Sequence[float], tol: float) -> bool:
    """Whether no weight can move to where the slope is lower; `product` is `Gw`, `roots` the rows' norms."""
    reach = bar(tol) * sum(map(mul, roots, w))
    slacks = [reach * r for r in roots]
    high = max([p - r for p, r, w_i in zip(product, slacks, w, strict=True) if w_i > 0.0])
    return bool(high <= min(map(add, product, slacks)))


def optimal_batch(G: Any, product: Any, w: Any, active: Any, tol: float, where: Callable[..., Any]) -> Any:
    """`optimal` for numpy or torch arrays `G (M, M, B)`, the rest `(M, B)`; sums in index order."""
    M = len(w)
    roots = [where(G[i, i] > 0.0, G[i, i], 0.0) ** 0.5 for i in range(M)]
    reach = roots[0] * w[0]
    for i in range(1, M):
        reach = reach + roots[i] * w[i]
    reach = bar(tol) * reach
    high, low = product[0] * 0.0 - np.inf, product[0] * 0.0 + np.inf
    for i in range(M):
        top, bottom = product[i] - reach * roots[i], product[i] + reach * roots[i]
        high = where((w[i] > 0.0) & (top > high), top, high)
        low = where(active[i] & (bottom < low), bottom, low)
    return high <= low


def convex(G: Matrix, slack: float) -> bool:
    """Whether the cosines of two or three rows have no eigenvalue below `-slack`: by minors, without a root.

    Cubes of the diagonal must be in range.
    """
    s = 1.0 + slack
    if len(G) == 2:
        (a, g), (_, b) = G
        return g * g < s * s * (a * b)
    (a, g, h), (_, b, k), (_, _, c) = G
    gg = g * g
    return gg < s * s * (a * b) and s * (s * s * a * b * c - gg * c - h * h * b - k * k * a) + 2.0 * g * h * k > 0.0


def convex_array(G: Array, slack: float) -> bool:
    """`convex` for one `(n, n)` array: by the pivots of a factor."""
    root = norms(G.diagonal())
    with np.errstate(over="ignore"):
        cosines = G / root / root[:, None]
    if G.diagonal().min() < 0.0 or not np.isfinite(cosines).all():
        return False
    try:
        np.linalg.cholesky(cosines + slack * np.eye(len(G)))
    except np.linalg.LinAlgError:
        return False
    return True


def convex_batch(G: Any, slack: float, where: Callable[..., Any]) -> Any:
    """`convex` for numpy or torch arrays `(M, M, B)`, with rows of zeros for those that are not active."""
    M = len(G)
    roots = [where(G[i, i] > _TINY, G[i, i], _TINY) ** 0.5 for i in range(M)]
    rows = [[G[i, j] / roots[i] / roots[j] for j in range(i + 1)] for i in range(M)]
    sound = rows[0][0] + slack > 0.0
    for k in range(M):
        pivot = rows[k][k] + slack
        sound = sound & (pivot > 0.0)
        pivot = where(pivot > 0.0, pivot, 1.0)
        for i in range(k + 1, M):
            share = rows[i][k] / pivot
            for j in range(k + 1, i + 1):
                rows[i][j] = rows[i][j] - share * rows[j][k]
    return sound


def norms(diagonal: Array) -> Array:
    """Norms of the rows; of one that underflowed, the least there is."""
    root: Array = np.sqrt(np.maximum(diagonal, _TINY))
    return root
