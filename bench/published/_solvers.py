"""The min-norm problem as published loops solve it in every step: Gramian in, weights on the simplex out."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def frank_wolfe(G: Array, iterations: int = 250, tolerance: float = 1e-6) -> Array:
    """Frank-Wolfe with exact line search from equal weights, Algorithm 2 of Sener & Koltun (2018)."""
    w = np.full(len(G), 1 / len(G))
    for _ in range(iterations):
        product = G @ w
        best = int(product.argmin())
        # w + t (e_best - w): the squared length is a parabola in t
        slope, curvature = product @ w - product[best], w @ product - 2 * product[best] + G[best, best]
        step = min(max(slope / curvature, 0.0), 1.0) if curvature > 0 else 0.0
        if step < tolerance:
            break
        w *= 1 - step
        w[best] += step
    return w


def by_cvxpy(G: Array) -> Array:
    """The quadratic program, modelled anew in every step and handed to Clarabel."""
    import cvxpy

    cp: Any = cvxpy  # its types do not declare the atoms

    w = cp.Variable(len(G))
    objective = cp.quad_form(w, cp.psd_wrap(G / G.diagonal().mean()))
    cp.Problem(cp.Minimize(objective), [w >= 0, cp.sum(w) == 1]).solve(solver=cp.CLARABEL)
    return np.asarray(w.value)


def by_slsqp(G: Array) -> Array:
    """scipy's SLSQP; at its default tolerance, which is absolute, it would stop with four digits."""
    from scipy.optimize import minimize

    P, n = G / G.diagonal().mean(), len(G)
    return minimize(
        lambda w: w @ P @ w,
        np.full(n, 1 / n),
        jac=lambda w: 2 * P @ w,
        bounds=[(0.0, 1.0)] * n,
        constraints=[{"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like}],
        method="SLSQP",
        options={"ftol": 1e-14},
    ).x
