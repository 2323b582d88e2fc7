"""Exact active-set solve of one problem on the host, any number of rows (numpy, fp64).

With `u_i = |g_i| w_i` and `a_i = 1 / |g_i|` the problem is `min u'Cu, a'u = 1, u >= 0`: C is close to a correlation
matrix whatever the norms are. Its solution is `u = y / a'y`, where `y` solves the non-negative QP
`min y'Ky / 2 - a'y, y >= 0` with `K = C + aa'`, which is bounded even when 0 is in the hull (Wolfe 1976; Lawson &
Hanson 1974).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
_EPS = 2.0**-52
GUESSES = 8


def solve(G: Array, tol: float) -> tuple[Array, int, bool]:
    """Min-norm weights (n,) of one finite symmetric `(n, n)` Gramian, systems solved, and whether it converged."""
    diagonal = G.diagonal().tolist()  # reductions of a few numbers are cheaper in Python
    if min(diagonal) > 0.0:
        scale = 1.0 / np.sqrt(G.diagonal())
        a = scale * (min(diagonal) ** 0.5)
        K = G * scale * scale[:, None] + a * a[:, None]
        support = G[diagonal.index(min(diagonal))] <= min(diagonal)
        y, iterations = _guess(K, a, support, tol)
        if y is not None:
            w: Array = a * y
            return w / sum(w.tolist()), iterations, True
    if not min(diagonal) > 0.0:
        zero = G.diagonal() <= 0.0
        return zero / zero.sum(), 0, True  # a zero row is the min-norm point
    w, more, converged = solve_carefully(G, tol)
    return w, iterations + more, converged


def least_pivot(tol: float) -> float:
    """A pivot below this share of its diagonal entry is too small to trust."""
    return max(1e-6, 1e4 * tol)


def _guess(K: Array, a: Array, support: Mask, tol: float) -> tuple[Array | None, int]:
    """Block principal pivoting from a first guess (see `_pivoting`); None unless the answer is clearly unique."""
    for guess in range(1, GUESSES + 1):
        index = support.nonzero()[0]
        try:
            inverse = np.linalg.inv(K[index[:, None], index])
        except np.linalg.LinAlgError:
            break
        y = np.zeros_like(a)
        y[index] = inverse @ a[index]
        slack, near = _slack(K, a, y, tol)
        wrong = (y <= 0.0) & support | (slack < -near) & ~support
        if not np.count_nonzero(wrong):
            tied = np.count_nonzero(slack <= 4.0 * near) > len(index)
            return (None if tied or not _well_conditioned(inverse, tol) else y), guess
        support = support ^ wrong
    return None, guess


def _well_conditioned(inverse: NDArray[Any], tol: float) -> bool:
    """Whether no row's pivot, taken last, is too small: the diagonal of the inverse holds their reciprocals."""
    return 0.0 < float(max(inverse.diagonal().tolist())) < 1.0 / least_pivot(tol)


def _slack(K: Array, a: Array, y: Array, tol: float) -> tuple[Array, Array]:
    """`Ky - a`, and what rounding of size `tol` can make of a true zero in it (the rows of K have norm about 1)."""
    return K @ y - a, tol * (2.0 * sum(map(abs, y.tolist())) + a)


def solve_carefully(G: Array, tol: float) -> tuple[Array, int, bool]:
    """The answer where supports are hard to tell apart: singular, ill-conditioned or tied problems."""
    scale = np.ldexp(1.0, -(np.frexp(G.diagonal())[1] // 2))  # powers of two: K keeps the digits of G
    a = scale / scale.max()
    K = G * scale * scale[:, None] + a * a[:, None]
    values, vectors = np.linalg.eigh(K)
    convex = (vectors * np.maximum(values, tol)) @ vectors.T if values[0] < tol else K
    y, iterations, converged = nonnegative_qp(0.5 * (convex + convex.T), a)
    slack, near = _slack(K, a, y, 4.0 * tol)
    face = (y > 0.0) | (slack <= near)
    w = a * y
    w /= w.sum()
    null = a[face, None] * _null_directions(K[face][:, face], 2.0 * tol)
    if null.shape[1] == 0:
        return _polished(G, w), iterations, converged
    basis = np.linalg.qr(null / np.linalg.norm(null, axis=0), mode="complete")[0]
    even = np.zeros_like(w)
    even[face] = _shortest(basis[:, null.shape[1] :].T, w[face])
    even /= even.sum()
    u = even / a
    slack, near = _slack(K, a * (u @ K @ u), u, 4.0 * tol)
    return even if (slack >= -near).all() else w, iterations, converged


def nonnegative_qp(K: Array, a: Array, near: Array | None = None) -> tuple[Array, int, bool]:
    """`argmin_{y >= 0} y'Ky / 2 - a'y` for positive definite K by Lawson and Hanson's active set.

    It starts from the support of `near` where the minimiser there is positive.
    """
    n = len(a)
    rounding = 4.0 * n * _EPS
    y, passive, iterations = np.zeros(n), np.zeros(n, dtype=np.bool_), 0
    if near is not None and (z := _solve_on(K, a, near > 0.0)) is not None and (z[near > 0.0] > 0.0).all():
        y, passive = z, near > 0.0
    for _ in range(3 * n + 10):
        slack, reach = _slack(K, a, y, rounding)
        slack[passive] = 0.0
        entering = int(np.argmin(slack + reach))
        if slack[entering] >= -reach[entering]:
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


def _solve_on(K: Array, a: Array, passive: Mask) -> Array | None:
    """The free minimiser with support in `passive`; None if its system is singular."""
    index = np.flatnonzero(passive)
    y: Array = np.zeros_like(a)
    try:
        y[index] = np.linalg.solve(K[index][:, index], a[index])
    except np.linalg.LinAlgError:
        return None
    return y


def _null_directions(K: Array, tol: float) -> Array:
    """A basis of K's null space by Gauss-Jordan with diagonal pivoting, which unlike eigenvectors mixes no scales."""
    T, free = K.copy(), np.ones(len(K), dtype=np.bool_)
    for _ in range(len(K)):
        pivots = np.where(free, T.diagonal(), 0.0)
        k = int(np.argmax(pivots))
        if pivots[k] <= tol:
            break
        row = T[k] / pivots[k]
        T -= T[:, k, None] * row
        T[k] = row
        free[k] = False
    null: Array = -T[:, free]
    null[free] = np.eye(int(free.sum()))
    return null


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
    z = w
    for _ in range(20):
        z = nonnegative_qp(K, multipliers @ R, z)[0]
        missing = target - R @ z
        if np.abs(missing).max() <= 4.0 * _EPS:
            break
        multipliers = multipliers + missing
    support = z > 0.0
    exact = np.zeros_like(w)
    exact[support] = np.linalg.lstsq(R[:, support], target, rcond=None)[0]
    exact = np.maximum(exact, 0.0)
    return exact if np.abs(target - R @ exact).max() <= 64.0 * len(w) * _EPS else w
