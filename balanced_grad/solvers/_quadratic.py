"""A second exact solve of one problem, by a primal active set (numpy, fp64), and the shortest among its solutions.

With `u_i = |g_i| w_i` the quadratic form has the cosines of the rows as its matrix, whatever their norms are. Each step
goes to the minimiser over the free coordinates, or down a direction without curvature, as far as the next coordinate
that reaches 0; where nothing is left to gain the one with the most negative multiplier is let go. It ends with the
optimality conditions, each judged against the size of its own terms (Nocedal & Wright, "Numerical Optimization",
chapter 16).
"""

from dataclasses import dataclass

import numpy as np

from balanced_grad.solvers._active_set import Array, Mask

_NOISE = 1e-12  # of slopes along directions that nearly have no curvature
_ROUNDING = 2.0**-46  # no share of a point: a row on the support by rounding alone fails the conditions


def solve_from(G: Array, point: Array, tol: float) -> tuple[Array, int, bool]:
    """The minimiser of smallest `|w|` from weights `point`, steps taken, and whether it passed the conditions."""
    s, tol = scale(G), max(tol, _NOISE)
    u, iterations, converged = scaled(G, s).solve(s * point, tol)
    w = inside(np.where(u > _ROUNDING * u.max(), u, 0.0) / s)
    if converged:
        even = _shortest(scaled(G, np.ones_like(s)), w, tol)
        even = inside(np.where((w > 0.0) | (even > _NOISE), even, 0.0))
        reach = float((np.sqrt(np.maximum(G.diagonal(), 0.0)) @ w) ** 2)
        if even @ G @ even <= w @ G @ w + 16.0 * tol * reach:
            w = even
    return w, iterations, converged


def scale(G: Array) -> Array:
    """Norms of the rows as powers of two, a zero row as the shortest of the others, over the shortest."""
    diagonal = G.diagonal()
    used = diagonal[diagonal > 0.0]
    exponent = np.frexp(np.where(diagonal > 0.0, diagonal, used.min(initial=1.0)))[1] // 2
    norms: Array = np.ldexp(1.0, exponent - exponent.min())
    return norms


def inside(w: Array) -> Array:
    """`w` put back on the simplex after rounding."""
    w = np.maximum(w, 0.0)
    total: float = w.sum()
    return w / total if total > 0.0 else w


@dataclass(frozen=True)
class Quadratic:
    """`min x'Hx / 2`, `E x = e`, `x >= 0`, a bounded set; rows of E of length 1."""

    H: Array
    E: Array
    e: Array

    def solve(self, x: Array, tol: float) -> tuple[Array, int, bool]:
        """A minimiser from a feasible `x`, steps taken, and whether it passed the optimality conditions."""
        n = len(x)
        held = np.zeros(n, np.bool_)
        for step in range(1, 20 * n + 50):
            target, ray = self._target(x, held, tol)
            p = target - x
            alpha, block = _room(x, p, held, np.inf if ray else 1.0)
            if block is not None:
                x = x + alpha * p
                held = held | (np.arange(n) == block)
                x[block] = 0.0
                continue
            if ray:
                return x, step, False  # the feasible set is bounded: this is rounding
            x = target
            release = self._release(x, held, tol, first=step > 10 * n)
            if release is None:
                return x, step, True
            held = held & (np.arange(n) != release)
        return x, step, False

    def _target(self, x: Array, held: Mask, tol: float) -> tuple[Array, bool]:
        """The minimiser with these coordinates at 0, or a point further down a ray."""
        free = ~held
        U, S, Vt = np.linalg.svd(self.E[:, free])
        rank = int((1e-13 * S.max(initial=0.0) < S).sum())
        base, Z = Vt[:rank].T @ ((U.T @ self.e)[:rank] / S[:rank]), Vt[rank:].T
        H = self.H[free][:, free]
        slope, reach = H @ base, np.abs(H) @ np.abs(base)
        values, vectors = np.linalg.eigh(Z.T @ H @ Z)
        V = Z @ vectors
        along = V.T @ slope
        curved = values > len(x) * tol * np.abs(H).max(initial=0.0)
        target = x.copy()
        down = ~curved & (np.abs(along) > tol * (np.abs(V).T @ reach))
        if down.any():
            target[free] -= V[:, down] @ along[down]
            return target, True
        y = V.T @ (x[free] - base)
        y[curved] = -along[curved] / values[curved]
        target[free] = base + V @ y
        return target, False

    def _release(self, x: Array, held: Mask, tol: float, *, first: bool) -> int | None:
        """The coordinate at 0 to let go; None where the conditions hold."""
        slope = self.H @ x
        mu = -np.linalg.lstsq(self.E[:, ~held].T, slope[~held], rcond=1e-13)[0]
        noise = tol * (np.abs(self.H) @ np.abs(x) + np.abs(self.E).T @ np.abs(mu))
        gain = np.where(held, slope + self.E.T @ mu, 0.0)
        wrong = gain < -noise
        if not wrong.any():
            return None
        ratio = np.where(wrong, gain / np.where(noise > 0.0, noise, 1.0), 0.0)
        return int(np.argmax(wrong) if first else np.argmin(ratio))  # the first of them cannot cycle (Bland)


def scaled(G: Array, s: Array) -> Quadratic:
    """The simplex problem in `u = s w`."""
    length = np.linalg.norm(1.0 / s)
    return Quadratic(G / s / s[:, None], (1.0 / s / length).reshape(1, -1), np.array([1.0 / length]))


def _room(x: Array, p: Array, held: Mask, most: float) -> tuple[float, int | None]:
    """How far to go along `p`, and the coordinate that stops it."""
    ahead = np.full(len(x), np.inf)
    down = (p < 0.0) & ~held
    ahead[down] = -x[down] / p[down]
    block = int(np.argmin(ahead))
    return (most, None) if ahead[block] >= most else (max(float(ahead[block]), 0.0), block)


def _shortest(problem: Quadratic, x: Array, tol: float) -> Array:
    """The point of smallest `|x|` among those with the value of `x`, a minimiser; `x` where it is the only one."""
    values, vectors = np.linalg.eigh(problem.H)
    fixed = vectors[:, values > len(x) * tol * np.abs(problem.H).max()].T
    _, S, Vt = np.linalg.svd(np.vstack((problem.E, fixed)))
    E = Vt[: int((1e-9 * S[0] < S).sum())]
    if len(E) == len(x):
        return x
    even, _, converged = Quadratic(np.eye(len(x)), E, E @ x).solve(x, tol)
    return even if converged else x
