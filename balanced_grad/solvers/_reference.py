"""Bounds, a linear term and extra constraints, and the reference solvers (imports are lazy).

Whatever finds the first point, the answer is that of the active set started there, which ends with the optimality
conditions: what a solver says of itself counts for nothing.
"""

import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from torch import Tensor

from balanced_grad.solvers import _certificate
from balanced_grad.solvers._active_set import Array, Mask
from balanced_grad.solvers._host import Answers
from balanced_grad.solvers._problem import QuadraticProgram, factor, finish, make_problem
from balanced_grad.solvers._result import Status

_NEEDS = {"cvxpy": "cvxpy", "scipy": "scipy.optimize"}


def solve_loop(
    G: Array, active: Mask, method: str, terms: Sequence[Tensor] | None, tol: float, slack: float
) -> Answers:
    """`(B, M, M)` problems one after another; `terms` as `check_terms` gives them."""
    if method in _NEEDS:
        import_module(_NEEDS[method])  # where it is missing, that is the answer, and no other solver's
    B, M = active.shape
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
            linear, lower, upper = (x[k, on] for x in rows)
            problem, scale = make_problem(g, linear, lower, upper, A[:, on], b)
            w, iterations[k], converged = _solve(problem, method, tol)
            solved = converged and _certificate.convex_array(problem.G, slack)
            status[k] = Status.SOLVED if solved else Status.NOT_CONVERGED
            weights[k, on], gaps[k] = w, problem.gap(w) / scale
    return weights, gaps, iterations, status


def _solve(problem: QuadraticProgram, method: str, tol: float) -> tuple[Array, int, bool]:
    """From the named solver's point; where that fails, from another's."""
    start = problem.start()
    iterations = 0
    for first in dict.fromkeys((method, "auto", "cvxpy", "scipy")):
        w, more, converged = finish(problem, _first_point(problem, start, first), tol)
        iterations += more
        if converged:
            break
    return w, iterations, converged


def _first_point(problem: QuadraticProgram, start: Array, method: str) -> Array:
    """What the named solver finds, if it is feasible; what it says of itself is not looked at."""
    if method == "auto":
        return start
    try:
        point = problem.inside((solve_scipy if method == "scipy" else solve_cvxpy)(problem, start))
    except Exception:  # each solver fails in ways of its own
        return start
    return point if problem.feasible(point) else start


def solve_scipy(problem: QuadraticProgram, start: Array) -> Array:
    """NNLS for the plain problem, SLSQP for the rest (about six digits)."""
    from scipy.optimize import minimize, nnls

    n = len(problem.G)
    if problem.plain:
        y = nnls(np.vstack((factor(problem.scaled(problem.scale()).H), 1.0 / problem.scale())), np.eye(n + 1)[n])[0]
        w: Array = y / problem.scale()
        w /= w.sum()
        return w
    result: Any = minimize(
        lambda w: w @ problem.G @ w + problem.linear @ w,
        start,
        jac=lambda w: 2.0 * problem.G @ w + problem.linear,
        bounds=np.column_stack((problem.lower, problem.upper)),
        constraints=[
            {"type": "eq", "fun": lambda w: w.sum() - 1.0, "jac": np.ones_like},
            {"type": "ineq", "fun": lambda w: problem.b - problem.A @ w, "jac": lambda _: -problem.A},
        ],
        method="SLSQP",
        options={"ftol": 1e-16, "maxiter": 500},
    )
    return np.asarray(result.x)


def solve_cvxpy(problem: QuadraticProgram, start: Array) -> Array:
    """Clarabel through cvxpy at tight tolerances, on rows of equal norm."""
    import cvxpy

    cp: Any = cvxpy  # its types do not declare the atoms
    s = problem.scale()
    q = problem.scaled(s)
    u = cp.Variable(len(s))
    constraints = [q.E @ u == q.e, u >= q.lower, u <= q.upper, *([q.A @ u <= q.b] if len(q.b) else [])]
    program = cp.Problem(cp.Minimize(cp.sum_squares(factor(q.H) @ u) + 2.0 * q.q @ u), constraints)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "may be inaccurate": the conditions tell
        program.solve(solver=cp.CLARABEL, **dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-13))
    point: Array = start if u.value is None else u.value / s
    return point
