"""Whether weights are a minimiser: the optimality conditions row by row, and whether there is a minimum to speak of.

Both compare pure numbers. A row's product `(Gw)_i` is judged against `|g_i| Σ_j w_j |g_j|`, the size of its terms, so
that neither the unit of the gradients nor a row with a large norm decides what counts as zero.
"""

from collections.abc import Callable, Sequence
from math import sqrt
from operator import add, mul
from typing import Any

import numpy as np

from balanced_grad.solvers._active_set import Array

Rows = Sequence[Sequence[float]]
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


def convex(G: Rows, roots: Sequence[float], slack: float) -> bool:
    """Whether the matrix of cosines has no eigenvalue below `-slack`: by its minors, or the pivots of a factor."""
    s = 1.0 + slack
    if len(G) == 2:
        return bool(abs(G[0][1] / roots[0] / roots[1]) < s)
    if len(G) == 3:
        (_, g, h), (_, _, k), _ = G
        a, b, c = g / roots[0] / roots[1], h / roots[0] / roots[2], k / roots[1] / roots[2]
        return bool(a * a < s * s and s * (s * s - a * a - b * b - c * c) + 2.0 * a * b * c > 0.0)
    L: list[list[float]] = []
    for i, (g_i, r_i) in enumerate(zip(G, roots, strict=True)):
        row: list[float] = []
        for j, l_j in enumerate(L):
            row.append((g_i[j] / r_i / roots[j] - sum([a * b for a, b in zip(row, l_j, strict=False)])) / l_j[-1])
        pivot = g_i[i] / r_i / r_i + slack - sum([a * a for a in row])
        if not pivot > 0.0:
            return False
        row.append(sqrt(pivot))
        L.append(row)
    return True


def convex_array(G: Array, slack: float) -> bool:
    """`convex` for one `(n, n)` array."""
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
