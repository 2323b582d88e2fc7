"""The reference solvers (imports are lazy).

Whatever finds the first point, the answer is that of the active set started there, which ends with the optimality
conditions: what a solver says of itself counts for nothing.
"""

import warnings
from typing import Any

import numpy as np

from balanced_grad.solvers._active_set import Array
from balanced_grad.solvers._quadratic import inside, scale, scaled, solve_from


def solve_scipy(G: Array, tol: float) -> tuple[Array, int, bool]:
    """From the point of NNLS."""
    return solve_from(G, _first_point(_nnls, G), tol)


def solve_cvxpy(G: Array, tol: float) -> tuple[Array, int, bool]:
    """From the point of Clarabel through cvxpy at tight tolerances."""
    return solve_from(G, _first_point(_clarabel, G), tol)


def _first_point(solver: Any, G: Array) -> Array:
    """What the solver finds, put on the simplex; the middle where it finds nothing."""
    try:
        point = inside(solver(G))
    except Exception:  # each solver fails in ways of its own
        point = np.full(len(G), np.nan)
    return point if np.isfinite(point).all() and point.any() else np.full(len(G), 1.0 / len(G))


def _nnls(G: Array) -> Array:
    from scipy.optimize import nnls

    s, n = scale(G), len(G)
    w: Array = nnls(np.vstack((_factor(scaled(G, s).H), 1.0 / s)), np.eye(n + 1)[n])[0] / s
    return w


def _clarabel(G: Array) -> Array:
    import cvxpy

    cp: Any = cvxpy  # its types do not declare the atoms
    s = scale(G)
    problem = scaled(G, s)
    u = cp.Variable(len(s))
    program = cp.Problem(cp.Minimize(cp.sum_squares(_factor(problem.H) @ u)), [problem.E @ u == problem.e, u >= 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "may be inaccurate": the conditions tell
        program.solve(solver=cp.CLARABEL, **dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-13))
    w: Array = u.value / s
    return w


def _factor(H: Array) -> Array:
    """`L` with `L'L = H` but for the negative eigenvalues, which are rounding."""
    values, vectors = np.linalg.eigh(H)
    factor: Array = (vectors * np.sqrt(np.maximum(values, 0.0))).T
    return factor
