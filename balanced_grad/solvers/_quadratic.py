"""Exact solve of the general problem by a primal active set (numpy, fp64), and of the shortest among its solutions.

With `u_i = |g_i| w_i` the quadratic form has the cosines of the rows as its matrix, whatever their norms are. Each step
goes to the minimiser on the constraints that bind, or down a direction without curvature, as far as the next
constraint; where nothing is left to gain the constraint with the most negative multiplier is let go. It ends with the
optimality conditions, each judged against the size of its own terms (Nocedal & Wright, "Numerical Optimization",
chapter 16).
"""

from dataclasses import dataclass

import numpy as np

from balanced_grad.solvers._active_set import Array, Mask


@dataclass(frozen=True)
class Quadratic:
    """`min x'Hx / 2 + q'x`, `E x = e`, `lower <= x <= upper`, `A x <= b`; rows of E and A of length 1."""

    H: Array
    q: Array
    E: Array
    e: Array
    lower: Array
    upper: Array
    A: Array
    b: Array

    def solve(self, x: Array, tol: float) -> tuple[Array, int, bool]:
        """A minimiser from a feasible `x`, steps taken, and whether it passed the optimality conditions."""
        held, rows = (self.lower >= self.upper), list[int]()
        n = len(x)
        for step in range(1, 20 * (n + len(self.b)) + 50):
            target, ray = self._target(x, held, rows, tol)
            p = target - x
            alpha, block = self._room(x, p, held, rows, np.inf if ray else 1.0)
            x = target if block is None and not ray else x + alpha * p
            if block is not None:
                if block < n:
                    held = held | (np.arange(n) == block)
                    x[block] = self.lower[block] if p[block] < 0.0 else self.upper[block]
                else:
                    rows.append(block - n)
                continue
            if ray:
                return x, step, False  # the feasible set is bounded: this is rounding
            release = self._release(x, held, rows, tol, first=step > 10 * n)
            if release is None:
                return x, step, True
            if release < n:
                held = held & (np.arange(n) != release)
            else:
                rows.remove(release - n)
        return x, step, False

    def _target(self, x: Array, held: Mask, rows: list[int], tol: float) -> tuple[Array, bool]:
        """The minimiser with these constraints binding, or a point further down a ray."""
        free = ~held
        N = np.vstack((self.E, self.A[rows]))
        rest = np.concatenate((self.e, self.b[rows])) - N[:, held] @ x[held]
        U, S, Vt = np.linalg.svd(N[:, free])
        rank = int((1e-13 * S.max(initial=0.0) < S).sum())
        base, Z = Vt[:rank].T @ ((U.T @ rest)[:rank] / S[:rank]), Vt[rank:].T
        H = self.H[free][:, free]
        pull = self.q[free] + self.H[free][:, held] @ x[held]
        slope, reach = H @ base + pull, np.abs(H) @ np.abs(base) + np.abs(pull)
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

    def _room(self, x: Array, p: Array, held: Mask, rows: list[int], most: float) -> tuple[float, int | None]:
        """How far to go along `p`, and the constraint that stops it: a coordinate, or `n` plus a row of A."""
        n = len(x)
        ahead = np.full(n + len(self.b), np.inf)
        up, down = (p > 0.0) & ~held, (p < 0.0) & ~held
        ahead[:n][up] = (self.upper - x)[up] / p[up]
        ahead[:n][down] = (self.lower - x)[down] / p[down]
        toward = self.A @ p
        hit = toward > 1e-14 * (np.abs(self.A) @ np.abs(p))
        hit[rows] = False
        ahead[n:][hit] = (self.b - self.A @ x)[hit] / toward[hit]
        block = int(np.argmin(ahead))
        if ahead[block] >= most:
            return most, None
        return max(float(ahead[block]), 0.0), block

    def _release(self, x: Array, held: Mask, rows: list[int], tol: float, *, first: bool) -> int | None:
        """The binding constraint to let go; None where the conditions hold."""
        N = np.vstack((self.E, self.A[rows]))
        slope = self.H @ x + self.q
        mu = -np.linalg.lstsq(N[:, ~held].T, slope[~held], rcond=1e-13)[0]
        reach = tol * (np.abs(self.H) @ np.abs(x) + np.abs(self.q) + np.abs(N).T @ np.abs(mu))
        pull = slope + N.T @ mu
        pull = np.where(x <= self.lower, pull, -pull)
        pinned = ~held | (self.lower >= self.upper)
        gain = np.concatenate((np.where(pinned, 0.0, pull), mu[len(self.E) :]))
        noise = np.concatenate((reach, np.full(len(rows), reach.max())))
        wrong = gain < -noise
        if not wrong.any():
            return None
        ratio = np.where(wrong, gain / np.where(noise > 0.0, noise, 1.0), 0.0)
        k = int(np.argmax(wrong) if first else np.argmin(ratio))  # the first of them cannot cycle (Bland)
        return k if k < len(x) else len(x) + rows[k - len(x)]


def shortest(problem: Quadratic, x: Array, tol: float) -> Array:
    """The point of smallest `|x|` among those with the value of `x`, a minimiser; `x` where it is the only one."""
    values, vectors = np.linalg.eigh(problem.H)
    fixed = vectors[:, values > len(x) * tol * np.abs(problem.H).max()].T
    fixed = np.vstack((problem.E, fixed, *([problem.q / np.linalg.norm(problem.q)] if problem.q.any() else [])))
    _, S, Vt = np.linalg.svd(fixed)
    rank = int((1e-9 * S[0] < S).sum())
    if rank == len(x):
        return x
    E = Vt[:rank]
    n = len(x)
    face = Quadratic(np.eye(n), np.zeros(n), E, E @ x, problem.lower, problem.upper, problem.A, problem.b)
    even, _, converged = face.solve(x, tol)
    return even if converged else x
