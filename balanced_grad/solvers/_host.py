"""Problems on the host: one in plain floats, or many at once in numpy; what these leave goes to the active set."""

from collections.abc import Sequence
from math import isfinite, isnan, nan
from operator import mul

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from balanced_grad.solvers import _active_set, _closed, _floats, _pivoting
from balanced_grad.solvers._active_set import Array, Mask
from balanced_grad.solvers._result import MinNormResult, Status

Rows = Sequence[Sequence[float]]
Answer = tuple[Sequence[float] | Array, float, int, int]  # weights, gap, iterations, status
Answers = tuple[Array, Array, NDArray[np.int64], NDArray[np.int64]]
_MOST_FLOATS = 8  # rows: beyond this numpy beats plain floats


def solve_tensor(gramian: Tensor, active: Tensor | None, dtype: torch.dtype, tol: float) -> MinNormResult:
    """One `(M, M)` CPU Gramian with as few tensor calls as the result allows."""
    if active is not None:
        weights, gap, iterations, status = solve_active(gramian.tolist(), active.tolist(), tol)
    elif gramian.shape[0] <= _MOST_FLOATS:
        weights, gap, iterations, status = solve_rows(gramian.tolist(), tol)
    else:
        weights, gap, iterations, status = solve_array(gramian.detach().numpy().astype(np.float64, copy=False), tol)
    kind = np.float64 if dtype is torch.float64 else np.float32
    values = torch.from_numpy(np.array(weights, kind))  # the cheapest way from numbers to a tensor
    return MinNormResult(values, gap, iterations, status)


def solve_rows(G: Rows, tol: float) -> Answer:
    """Weights, gap, iterations and status of one problem given as nested floats."""
    M = len(G)
    weights: Sequence[float] | None
    iterations = 0
    if M == 2:
        weights = w0, w1 = _closed.two_rows(G, tol)
        product = [a * w0 + b * w1 for a, b in G]
    elif M == 3 and (weights := _closed.three_rows(G, tol)) is not None:
        w0, w1, w2 = weights
        product = [a * w0 + b * w1 + c * w2 for a, b, c in G]
    else:
        weights, iterations = _floats.solve_floats(G, tol) or (None, 0)
        if weights is None:
            return solve_array(np.array(G), tol)
        product = [sum(map(mul, row, weights)) for row in G]
    scale = max([row[i] for i, row in enumerate(G)])
    value = sum(map(mul, product, weights))
    if not isfinite(value + sum(product)):  # a NaN or an infinity anywhere in G reaches these
        return solve_array(np.array(G), tol)
    return weights, max((value - min(product)) / scale, 0.0) if scale > 0.0 else 0.0, iterations, 0


def solve_array(G: Array, tol: float) -> Answer:
    """`solve_rows` by the active set."""
    w, iterations, converged = _active_set.solve(G, tol)
    if isnan(w[0]):
        return w, nan, 0, int(Status.NON_FINITE)
    product = G @ w
    gap = (float(product @ w) - min(product.tolist())) / (max(G.diagonal().tolist()) or 1.0)
    return w, max(gap, 0.0), iterations, 0 if converged else int(Status.NOT_CONVERGED)


def solve_active(G: Rows, active: Sequence[bool], tol: float) -> Answer:
    """`solve_rows` on the active rows; the others get weight 0 and may hold anything."""
    if all(active):
        return solve_rows(G, tol)
    index = [i for i, on in enumerate(active) if on]
    weights = [0.0] * len(G)
    if not index:
        return weights, 0.0, 0, int(Status.NO_ACTIVE_ROW)
    inner, gap, iterations, status = solve_rows([[G[i][j] for j in index] for i in index], tol)
    for i, w in zip(index, inner, strict=True):
        weights[i] = w
    return weights, gap, iterations, status


def solve_loop(G: Array, active: Mask, tol: float) -> Answers:
    """`(B, M, M)` problems one after another, by the active set."""
    weights, gaps = np.zeros(active.shape), np.zeros(len(G))
    iterations, status = np.zeros((2, len(G)), np.int64)
    for k, mask in enumerate(active):
        on = np.flatnonzero(mask)
        if len(on):
            weights[k, on], gaps[k], iterations[k], status[k] = solve_array(G[k][on][:, on], tol)
        else:
            status[k] = Status.NO_ACTIVE_ROW
    return weights, gaps, iterations, status


def solve_batch(G: Array, active: Mask | None, tol: float) -> Answers:
    """`(B, M, M)` problems all at once, the batch as the last axis; unsettled ones by `solve_loop`."""
    B, M = G.shape[:2]
    T = np.ascontiguousarray(G.transpose(1, 2, 0))
    mask = np.ones((M, B), np.bool_) if active is None else np.ascontiguousarray(active.T)
    if active is not None:
        T = np.where(mask & mask[:, None], T, 0.0)
    with np.errstate(all="ignore"):  # non-finite and singular problems are told apart by their flags
        finite = np.isfinite(T.sum((0, 1)))
        weights, iterations, settled = _settle(T, mask, active is None, tol)
        gaps = _gap(T, mask, weights)
    status = np.zeros(B, np.int64)
    rest = np.flatnonzero(~(settled & finite))
    weights = np.ascontiguousarray(weights.T)
    if len(rest):
        on = mask.T[rest]
        weights[rest], gaps[rest], more, status[rest] = solve_loop(G[rest], on, tol)
        iterations[rest] += more
    return weights, gaps, iterations, status


def _settle(T: Array, mask: Mask, closed: bool, tol: float) -> tuple[Array, NDArray[np.int64], Mask]:
    M, B = mask.shape
    if closed and M == 2:
        w1, w2 = _closed.two_rows_batch(T, tol, np.where)
        return np.stack((w1, w2)), np.zeros(B, np.int64), np.ones(B, np.bool_)
    if closed and M == 3:
        weights, settled = _closed.three_rows_batch(T, tol)
        return weights, np.zeros(B, np.int64), settled
    return _pivoting.solve_batch(T, mask, tol)


def _gap(T: Array, mask: Mask, w: Array) -> Array:
    M = len(w)
    product = T[:, 0] * w[0]
    for k in range(1, M):
        product += T[:, k] * w[k]
    value = product[0] * w[0]
    for k in range(1, M):
        value += product[k] * w[k]
    scale = T[np.arange(M), np.arange(M)].max(0)
    gap = (value - np.where(mask, product, np.inf).min(0)) / np.where(scale > 0.0, scale, 1.0)
    clamped: Array = np.maximum(gap, 0.0)
    return clamped
