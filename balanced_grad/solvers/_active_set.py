"""Exact active-set solve of one problem on the host, any number of rows (numpy, fp64).

With `u_i = |g_i| w_i` and `a_i = 1 / |g_i|` the problem is `min u'Cu, a'u = 1, u >= 0`: C is close to a correlation
matrix whatever the norms are. Its solution is `u = y / a'y`, where `y` solves the non-negative QP
`min y'Ky / 2 - a'y, y >= 0` with `K = C + aa'`, which is bounded even when 0 is in the hull (Wolfe 1976; Lawson &
Hanson 1974). Scales are powers of two, so `C` and `a` carry no rounding of their own.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def solve(G: Array, tol: float) -> tuple[Array, int, bool]:
    """Min-norm weights (n,) of one finite `(n, n)` Gramian, systems solved, and whether it converged."""
    diagonal = G.diagonal()
    zero = diagonal <= 0.0
    if zero.any():
        return zero / zero.sum(), 0, True  # a zero row is the min-norm point
    scale = np.ldexp(1.0, -(np.frexp(diagonal)[1] // 2))
    C = (0.5 * G + 0.5 * G.T) * scale * scale[:, None]
    a = scale / scale.max()
    K = C + a * a[:, None]
    y, iterations, converged = nonnegative_qp(K, a)
    if converged and _is_clear(K, a, y, tol):
        w = a * y
        return w / w.sum(), iterations, True
    values, vectors = np.linalg.eigh(K)
    if values[0] < tol or not converged:
        convex = (vectors * np.maximum(values, tol)) @ vectors.T
        y, more, converged = nonnegative_qp(0.5 * (convex + convex.T), a)
        iterations += more
    face, null = _optimal_face(K, a, y, tol)
    w = a * y
    w /= w.sum()
    if null.shape[1] == 0:
        return _polished(G, w), iterations, converged
    basis = np.linalg.qr(null / np.linalg.norm(null, axis=0), mode="complete")[0]
    w[face] = _shortest(basis[:, null.shape[1] :].T, w[face])
    return w / w.sum(), iterations, converged


def nonnegative_qp(K: Array, a: Array) -> tuple[Array, int, bool]:
    """`argmin_{y >= 0} y'Ky / 2 - a'y`: drop negatives from the free solution, then Lawson-Hanson."""
    n = len(a)
    rounding = 4.0 * n * np.finfo(np.float64).eps
    y, passive, iterations = _shrink(K, a)
    for _ in range(3 * n + 10):
        product = K @ y
        slack = product - a
        slack[passive] = 0.0
        entering = int(np.argmin(slack))
        if slack[entering] >= -rounding * (np.abs(K[entering]) @ y + abs(a[entering])):
            return y, iterations, True
        passive[entering] = True
        while True:
            iterations += 1
            z = _solve_on(K, a, passive)
            if z is None or (z[entering] <= 0.0 and y[entering] == 0.0):
                return y, iterations, False
            if z[passive].min() > 0.0:
                y = z
                break
            blocking = passive & (z <= 0.0)
            step = (y[blocking] / (y[blocking] - z[blocking])).min()
            y = np.maximum(y + step * (z - y), 0.0)
            leaving = blocking & (y <= rounding * y.max())
            leaving[np.flatnonzero(blocking)[np.argmin(y[blocking])]] = True
            y[leaving] = 0.0
            passive &= ~leaving
    return y, iterations, False


def _shrink(K: Array, a: Array) -> tuple[Array, Mask, int]:
    """A point that is the free minimiser on its own support, found from the full support downwards."""
    passive = np.ones(len(a), dtype=np.bool_)
    for iterations in range(1, len(a) + 1):
        y = _solve_on(K, a, passive)
        if y is None or not y.max() > 0.0:
            break
        if y[passive].min() > 0.0:
            return y, passive, iterations
        passive = y > 0.0
    else:
        iterations = len(a)
    return np.zeros_like(a), np.zeros(len(a), dtype=np.bool_), iterations


def _solve_on(K: Array, a: Array, passive: Mask) -> Array | None:
    """The free minimiser with support in `passive`; None if its system is singular."""
    index = np.flatnonzero(passive)
    y = np.zeros_like(a)
    try:
        if len(index) == len(a):
            return np.linalg.solve(K, a)
        y[index] = np.linalg.solve(K[index][:, index], a[index])
    except np.linalg.LinAlgError:
        return None
    return y


def _is_clear(K: Array, a: Array, y: Array, tol: float) -> bool:
    """Whether `y` is the one minimiser, well-conditioned: no small pivot, no zero slack off the support."""
    index = np.flatnonzero(y)
    try:
        pivots = np.linalg.cholesky(K[index][:, index]).diagonal()
    except np.linalg.LinAlgError:
        return False
    tie = K @ y - a <= 4.0 * tol * (np.abs(K) @ y + a)
    return bool(pivots.min() ** 2 > max(1e-6, 1e4 * tol) and tie.sum() <= len(index))


def _optimal_face(K: Array, a: Array, y: Array, tol: float) -> tuple[Mask, Array]:
    """The rows that some minimiser may use, and the directions among them that change nothing."""
    face = (y > 0.0) | (K @ y - a <= 4.0 * tol * (np.abs(K) @ y + a))
    values, vectors = np.linalg.eigh(K[face][:, face])
    return face, a[face, None] * vectors[:, values <= 2.0 * tol]


def _polished(G: Array, w: Array) -> Array:
    """Solve again on the support of `w` from the edges at its shortest row, which near-parallel rows keep exact."""
    support = np.flatnonzero(w)
    G = G[support][:, support]
    r = int(np.argmin(G.diagonal()))
    b = G[r, r] - G[:, r]
    E = np.delete(np.delete((G - G[r]) + b[:, None], r, 0), r, 1)
    b = np.delete(b, r)
    scale = np.sqrt(E.diagonal())
    try:
        t = np.linalg.solve(E / scale / scale[:, None], b / scale) / scale
    except np.linalg.LinAlgError:
        return w
    if not (t.min(initial=1.0) > 0.0 and t.sum() < 1.0):
        return w
    polished = np.zeros_like(w)
    polished[support] = np.insert(t, r, 1.0 - t.sum())
    return polished


def _shortest(R: Array, w: Array) -> Array:
    """`argmin |z|` over `Rz = Rw`, `z >= 0` by the method of multipliers; `R` has orthonormal rows."""
    penalty = 1e-5  # R'R has eigenvalues 0 and 1 only: every pass adds five digits
    K = R.T @ R + penalty * np.eye(len(w))
    target = multipliers = R @ w
    for _ in range(20):
        z = nonnegative_qp(K, multipliers @ R)[0]
        missing = target - R @ z
        if np.abs(missing).max() <= 4.0 * np.finfo(np.float64).eps:
            break
        multipliers = multipliers + missing
    return z


def duality_gap(G: Array, w: Array) -> float:
    """`max_i (w'Gw - (Gw)_i) / max_i G_ii` of one problem."""
    scale: Any = G.diagonal().max()
    if scale <= 0.0:
        return 0.0
    product = (G / scale) @ w
    return float(max(w @ product - product.min(), 0.0))
