"""The general problem in units of its own, and what can be said of a point without solving it."""

from dataclasses import dataclass

import numpy as np

from balanced_grad.solvers._active_set import Array
from balanced_grad.solvers._quadratic import Quadratic, shortest

_NOISE = 1e-12  # of slopes along directions that nearly have no curvature
_ROOM = 1e-9  # by which constraints may be missed, relative to their own size


@dataclass(frozen=True)
class QuadraticProgram:
    """`min w'Gw + linear'w`, `sum w = 1`, `lower <= w <= upper`, `A w <= b`, the rows of A of length 1."""

    G: Array
    linear: Array
    lower: Array
    upper: Array
    A: Array
    b: Array

    @property
    def plain(self) -> bool:
        """Whether this is the simplex problem and nothing more."""
        return not (self.linear.any() or self.lower.any() or (self.upper < 1.0).any() or len(self.b))

    def check(self) -> None:
        """Bounds must leave room for weights that sum to 1."""
        for name, total, side in (("lower", self.lower.sum(), "most"), ("upper", self.upper.sum(), "least")):
            if (total > 1.0 + 1e-12) if name == "lower" else (total < 1.0 - 1e-12):
                raise ValueError(
                    f"{name} sums to {total:g} over the active rows: weights sum to 1, so it must be at {side} 1"
                )

    def scaled(self, s: Array) -> Quadratic:
        """The same in `u = s w`."""
        n = len(s)
        length = np.linalg.norm(1.0 / s)
        size = np.linalg.norm(self.A / s, axis=1)
        E, A = (1.0 / s / length).reshape(1, n), self.A / s / size[:, None]
        e = np.array([1.0 / length])
        bounds = self.lower * s, self.upper * s
        return Quadratic(self.G / s / s[:, None], self.linear / (2.0 * s), E, e, *bounds, A, self.b / size)

    def value(self, w: Array) -> float:
        """What is minimised."""
        return float(w @ self.G @ w + self.linear @ w)

    def reach(self, w: Array) -> float:
        """The size of the terms of `value`."""
        return float((np.sqrt(np.maximum(self.G.diagonal(), 0.0)) @ w) ** 2 + self.linear @ w)

    def scale(self) -> Array:
        """Norms of the rows as powers of two, a zero row as the shortest of the others, over the shortest."""
        diagonal = self.G.diagonal()
        used = diagonal[diagonal > 0.0]
        least = used.min() if len(used) else 1.0
        exponent = np.frexp(np.where(diagonal > 0.0, diagonal, least))[1] // 2
        scale: Array = np.ldexp(1.0, exponent - exponent.min())
        return scale

    def gap(self, w: Array) -> float:
        """`max (grad'w - grad'v) / 2` over feasible `v`: the duality gap, an LP that sorting solves without `A`."""
        slope = self.G @ w + 0.5 * self.linear
        if len(self.b):
            from scipy.optimize import linprog

            bounds = np.column_stack((self.lower, self.upper))
            size = np.abs(slope).max() or 1.0
            best = linprog(slope / size, self.A, self.b, np.ones((1, len(w))), [1.0], bounds).fun
            return float("nan") if best is None else max(float(slope @ w - best * size), 0.0)
        order = np.argsort(slope)
        room = (self.upper - self.lower)[order]
        taken = np.clip(1.0 - self.lower.sum() - np.concatenate(([0.0], np.cumsum(room)[:-1])), 0.0, room)
        return max(float(slope @ w - slope @ self.lower - slope[order] @ taken), 0.0)

    def inside(self, w: Array) -> Array:
        """`w` put back on the simplex and inside its bounds after a solver's rounding."""
        w = np.clip(w, self.lower, self.upper)
        missing = 1.0 - w.sum()
        room = self.upper - w if missing > 0.0 else w - self.lower
        total = room.sum()
        return w + missing * room / total if total > 0.0 else w

    def start(self) -> Array:
        """A feasible point, away from the constraints where that is possible."""
        n = len(self.G)
        even = self.inside(np.full(n, 1.0 / n))
        if not len(self.b):
            return even
        from scipy.optimize import linprog

        row = np.append(np.zeros(n), -1.0)  # as far from A w = b as can be, up to 1
        bounds = [*zip(self.lower, self.upper, strict=True), (None, 1.0)]
        A, total = np.column_stack((self.A, np.ones(len(self.b)))), np.append(np.ones(n), 0.0)[None]
        found = linprog(row, A, self.b, total, [1.0], bounds)
        if found.x is None or -found.fun < -_ROOM:
            raise ValueError(
                "no weights satisfy inequalities=(A, b) together with the bounds: loosen b, or lower and upper"
            )
        point: Array = found.x[:n]
        return self.inside(point)

    def feasible(self, w: Array) -> bool:
        """Whether a solver's point can be started from."""
        return bool(np.isfinite(w).all() and abs(w.sum() - 1.0) <= _ROOM and (self.A @ w <= self.b + 1e-12).all())


def make_problem(
    G: Array, linear: Array, lower: Array, upper: Array, A: Array, b: Array
) -> tuple[QuadraticProgram, float]:
    """In units in which its largest number is 1, without constraints on nothing; and its largest diagonal entry."""
    linear = linear - linear.min()  # weights sum to 1
    most = max(G.diagonal().max(), linear.max())
    exponent = -int(np.frexp(most)[1])
    size = np.abs(A).max(1, initial=0.0)
    kept = (size > 0.0) | (b < 0.0)
    A, b = (x / np.where(size > 0.0, size, 1.0)[(...,) + (None,) * (x.ndim - 1)] for x in (A, b))
    problem = QuadraticProgram(np.ldexp(G, exponent), np.ldexp(linear, exponent), lower, upper, A[kept], b[kept])
    problem.check()
    scale = float(problem.G.diagonal().max())
    return problem, scale if scale > 0.0 else 1.0


def factor(H: Array) -> Array:
    """`L` with `L'L = H` but for the negative eigenvalues, which are rounding."""
    values, vectors = np.linalg.eigh(H)
    factor: Array = (vectors * np.sqrt(np.maximum(values, 0.0))).T
    return factor


def finish(problem: QuadraticProgram, point: Array, tol: float) -> tuple[Array, int, bool]:
    """The minimiser of smallest `|w|` from a feasible point, by the active set."""
    s, tol = problem.scale(), max(tol, _NOISE)
    u, iterations, converged = problem.scaled(s).solve(s * point, tol)
    w = problem.inside(u / s)
    if converged:
        even = problem.inside(shortest(problem.scaled(np.ones_like(s)), w, tol))
        if problem.value(even) <= problem.value(w) + 16.0 * tol * problem.reach(w):
            w = even
    return w, iterations, converged


def solve_plain(G: Array, tol: float) -> tuple[Array, int, bool]:
    """The simplex problem by this active set."""
    n = len(G)
    zero = np.zeros(n)
    problem, _ = make_problem(G, zero, zero, np.ones(n), np.zeros((0, n)), np.zeros(0))
    return finish(problem, np.full(n, 1.0 / n), tol)
