"""One problem on the host: plain floats for up to three rows, the active set for more."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from balanced_grad.solvers import _active_set, _closed
from balanced_grad.solvers._result import MinNormResult, Status

Answer = tuple[Sequence[float], float, int, int]  # weights, gap, iterations, status


def solve_tensor(gramian: Tensor, dtype: torch.dtype, tol: float) -> MinNormResult:
    """One `(M, M)` CPU Gramian, every row active, with as few tensor calls as the result allows."""
    weights, gap, iterations, status = solve_rows(gramian.tolist(), tol)
    return MinNormResult(
        torch.from_numpy(np.array(weights, dtype=np.float64 if dtype is torch.float64 else np.float32)),
        torch.scalar_tensor(gap, dtype=torch.float64),
        torch.scalar_tensor(iterations, dtype=torch.int64),
        torch.scalar_tensor(status, dtype=torch.int64),
    )


def solve_rows(G: Sequence[Sequence[float]], tol: float) -> Answer:
    """Weights, gap, iterations and status of one problem given as nested floats."""
    if not math.isfinite(sum(map(sum, G))):
        array = np.array(G)
        if not np.isfinite(array).all():
            return [math.nan] * len(G), math.nan, 0, Status.NON_FINITE
        return solve_rows((array / np.abs(array).max()).tolist(), tol)  # only the sum overflowed
    M = len(G)
    weights: Sequence[float] | None = None
    if M == 2:
        weights = _closed.two_rows(G, tol)
    elif M == 3:
        weights = _closed.three_rows(G, tol)
    elif M == 1:
        weights = (1.0,)
    if weights is not None:
        return weights, _gap(G, weights), 0, 0
    array = np.array(G)
    solved, iterations, converged = _active_set.solve(array, tol)
    status = Status.SOLVED if converged else Status.NOT_CONVERGED
    return solved.tolist(), _active_set.duality_gap(array, solved), iterations, status


def solve_masked(G: Sequence[Sequence[float]], active: Sequence[bool], tol: float) -> Answer:
    """`solve_rows` on the active rows; the others get weight 0 and may hold anything."""
    index = [i for i, on in enumerate(active) if on]
    if len(index) == len(G):
        return solve_rows(G, tol)
    weights = [0.0] * len(G)
    if not index:
        return weights, 0.0, 0, Status.NO_ACTIVE_ROW
    inner, gap, iterations, status = solve_rows([[G[i][j] for j in index] for i in index], tol)
    if status == Status.NON_FINITE:
        return [math.nan] * len(G), gap, iterations, status
    for i, w in zip(index, inner, strict=True):
        weights[i] = w
    return weights, gap, iterations, status


def _gap(G: Sequence[Sequence[float]], w: Sequence[float]) -> float:
    scale = max([row[i] for i, row in enumerate(G)])
    if scale <= 0.0:
        return 0.0
    product = [sum([g * x for g, x in zip(row, w, strict=True)]) for row in G]
    value = sum([p * x for p, x in zip(product, w, strict=True)])
    return max((value - min(product)) / scale, 0.0)
