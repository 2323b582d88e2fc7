"""Reference solvers, and the path for bounds, a linear term and extra constraints (imports are lazy)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from balanced_grad.solvers._active_set import Array, Mask
from balanced_grad.solvers._host import Answers
from balanced_grad.solvers._result import Status


@dataclass(frozen=True)
class Problem:
    """`min w'Gw + linear'w`, `sum w = 1`, `lower <= w <= upper`, `A w <= b`; G scaled to a largest diagonal of 1."""

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

    def factor(self) -> Array:
        """`L` with `L'L = G` but for the negative eigenvalues, which are rounding."""
        values, vectors = np.linalg.eigh(0.5 * self.G + 0.5 * self.G.T)
        factor: Array = (vectors * np.sqrt(np.maximum(values, 0.0))).T
        return factor

    def gap(self, w: Array) -> float:
        """`max (grad'w - grad'v) / 2` over feasible `v`: the duality gap, an LP that sorting solves without `A`."""
        slope = self.G @ w + 0.5 * self.linear
        if len(self.b):
            from scipy.optimize import linprog

            bounds = np.column_stack((self.lower, self.upper))
            best = linprog(slope, self.A, self.b, np.ones((1, len(w))), [1.0], bounds).fun
            return max(float(slope @ w - best), 0.0)
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


def solve_loop(G: Array, active: Mask, method: str, terms: Sequence[Tensor] | None) -> Answers:
    """`(B, M, M)` problems one after another through scipy or cvxpy; `terms` as `check_terms` gives them."""
    B, M = active.shape
    solve = solve_scipy if method == "scipy" else solve_cvxpy
    if terms is None:
        rows = [np.full((B, M), x) for x in (0.0, 0.0, 1.0)]
        A, b = np.zeros((0, M)), np.zeros(0)
    else:
        rows = [x.reshape(B, M).numpy() for x in terms[:3]]
        A, b = terms[3].numpy(), terms[4].numpy()
    weights, gaps, (iterations, status) = np.zeros((B, M)), np.zeros(B), np.zeros((2, B), np.int64)
    for k, (g, mask) in enumerate(zip(G, active, strict=True)):
        on = np.flatnonzero(mask)
        g = g[on][:, on]
        if not len(on):
            status[k] = Status.NO_ACTIVE_ROW
        elif not np.isfinite(g).all():
            weights[k, on], gaps[k], status[k] = np.nan, np.nan, Status.NON_FINITE
        else:
            scale = g.diagonal().max()
            scale = scale if scale > 0.0 else 1.0
            linear, lower, upper = (x[k, on] for x in rows)
            problem = Problem(g / scale, linear / scale, lower, upper, A[:, on], b)
            problem.check()
            weights[k, on], iterations[k], converged = solve(problem)
            gaps[k] = problem.gap(weights[k, on])
            status[k] = Status.SOLVED if converged else Status.NOT_CONVERGED
    return weights, gaps, iterations, status


def solve_scipy(problem: Problem) -> tuple[Array, int, bool]:
    """NNLS for the plain problem (exact), SLSQP for the rest (about six digits)."""
    from scipy.optimize import minimize, nnls

    n = len(problem.G)
    if problem.plain:
        scale = np.sqrt(np.maximum(problem.G.diagonal(), np.finfo(np.float64).tiny))
        scaled = Problem(problem.G / scale / scale[:, None], *(np.zeros(0) for _ in range(5)))
        a = scale.min() / scale
        y = nnls(np.vstack((scaled.factor(), a)), np.append(np.zeros(n), 1.0))[0]
        w = a * y
        return w / w.sum(), 0, True
    result: Any = minimize(
        lambda w: w @ problem.G @ w + problem.linear @ w,
        problem.inside(np.full(n, 1.0 / n)),
        jac=lambda w: 2.0 * problem.G @ w + problem.linear,
        bounds=np.column_stack((problem.lower, problem.upper)),
        constraints=[
            {"type": "eq", "fun": lambda w: w.sum() - 1.0, "jac": np.ones_like},
            {"type": "ineq", "fun": lambda w: problem.b - problem.A @ w, "jac": lambda _: -problem.A},
        ],
        method="SLSQP",
        options={"ftol": 1e-16, "maxiter": 500},
    )
    if len(problem.b) and (problem.A @ result.x > problem.b + 1e-6).any():
        raise ValueError(_INFEASIBLE)
    return problem.inside(result.x), int(result.nit), bool(result.success) or problem.gap(result.x) < 1e-6


def solve_cvxpy(problem: Problem) -> tuple[Array, int, bool]:
    """Clarabel through cvxpy at tight tolerances, the problem compiled once for each size."""
    import cvxpy as cp

    program, w, parameters = _program(len(problem.G), len(problem.b))
    values = (problem.factor(), problem.linear, problem.lower, problem.upper, problem.A, problem.b)
    for parameter, value in zip(parameters, values, strict=False):
        parameter.value = value
    tight = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-13)
    program.solve(solver=cp.CLARABEL, **tight)
    if program.status in (cp.INFEASIBLE, cp.INFEASIBLE_INACCURATE):
        raise ValueError(_INFEASIBLE)
    if w.value is None:
        return np.full(len(problem.G), np.nan), 0, False
    point = problem.inside(w.value)
    return point, int(program.solver_stats.num_iters), problem.gap(point) < 1e-6


@lru_cache(maxsize=32)
def _program(n: int, n_inequalities: int) -> tuple[Any, Any, list[Any]]:
    import cvxpy

    cp: Any = cvxpy  # its types do not declare the atoms
    w = cp.Variable(n)
    L, linear, lower, upper = (cp.Parameter(shape) for shape in ((n, n), n, n, n))
    parameters = [L, linear, lower, upper]
    constraints = [cp.sum(w) == 1, w >= lower, w <= upper]
    if n_inequalities:
        A, b = cp.Parameter((n_inequalities, n)), cp.Parameter(n_inequalities)
        parameters += [A, b]
        constraints.append(A @ w <= b)
    return cp.Problem(cp.Minimize(cp.sum_squares(L @ w) + linear @ w), constraints), w, parameters


_INFEASIBLE = "no weights satisfy inequalities=(A, b) together with the bounds: loosen b, or lower and upper"
