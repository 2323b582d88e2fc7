"""Problems on the host: few rows in plain floats, many problems at once in numpy, the rest by the active set."""

from collections.abc import Sequence
from math import nan, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from balanced_grad.solvers import _active_set, _certificate, _closed, _pivoting, _problem
from balanced_grad.solvers._active_set import Array, Mask
from balanced_grad.solvers._result import MinNormResult, Status

Matrix = Sequence[Sequence[float]]
Answer = tuple[Sequence[float] | Array, float, int, int]  # weights, gap, iterations, status
Answers = tuple[Array, Array, NDArray[np.int64], NDArray[np.int64]]
_LEAST, _MOST = 1e-100, 1e100  # cubes of these are numbers still


def solve_tensor(gramian: Tensor, active: Tensor | None, dtype: torch.dtype, tol: float, slack: float) -> MinNormResult:
    """One `(M, M)` CPU Gramian, or each of a few `(..., M, M)`, with as few tensor calls as the result allows."""
    kind = np.float64 if dtype is torch.float64 else np.float32
    if gramian.dim() == 2:
        on = None if active is None else active.tolist()
        weights, gap, iterations, status = _solve_one(gramian.tolist(), on, tol, slack)
        values = torch.from_numpy(np.array(weights, kind))  # the cheapest way from numbers to a tensor
        return MinNormResult(values, gap, iterations, status)
    batch, M = gramian.shape[:-2], gramian.shape[-1]
    problems = gramian.reshape(-1, M, M).tolist()
    masks = [None] * len(problems) if active is None else active.reshape(-1, M).tolist()
    answers = [_solve_one(problem, mask, tol, slack) for problem, mask in zip(problems, masks, strict=True)]
    found, *rest = (np.array(x) for x in zip(*answers, strict=True))
    values = torch.from_numpy(found.astype(kind)).view(gramian.shape[:-1])
    return MinNormResult(values, *(torch.from_numpy(x).view(batch) for x in rest))


def _solve_one(G: Matrix, active: Sequence[bool] | None, tol: float, slack: float) -> Answer:
    return solve_rows(G, tol, slack) if active is None else solve_active(G, active, tol, slack)


def solve_rows(G: Matrix, tol: float, slack: float) -> Answer:
    """Weights, gap, iterations and status of one problem given as nested floats."""
    answer = _solve_two(G, tol, slack) if len(G) == 2 else _solve_three(G, tol, slack) if len(G) == 3 else None
    if answer is not None:
        return answer
    array = np.array(G)
    return solve_array(0.5 * array + 0.5 * array.T, tol, slack)


def _solve_two(G: Matrix, tol: float, slack: float) -> Answer | None:
    """The closed form; None where a number is zero, not finite or near the ends of the range, or `G` no Gramian."""
    (a, c), (d, b) = G
    c = 0.5 * c + 0.5 * d
    least, scale = (a, b) if a < b else (b, a)
    G = (a, c), (c, b)
    if not (least > _LEAST and scale < _MOST and _certificate.convex(G, slack)):
        return None
    w, v = weights = _closed.two_rows(G, tol)
    p, q = a * w + c * v, c * w + b * v
    gap = (p * w + q * v - (p if p < q else q)) / scale
    return weights, gap if gap > 0.0 else 0.0, 0, 0


def _solve_three(G: Matrix, tol: float, slack: float) -> Answer | None:
    """The same for three rows; None also where the minimiser is not clearly unique or fails the certificate."""
    (a, d, e), (g, b, f), (h, i, c) = G
    d, e, f = 0.5 * d + 0.5 * g, 0.5 * e + 0.5 * h, 0.5 * f + 0.5 * i
    scale = max(a, b, c)
    G = (a, d, e), (d, b, f), (e, f, c)
    if not (min(a, b, c) > _LEAST and scale < _MOST and _certificate.convex(G, slack)):
        return None
    found = _closed.three_rows(G, tol)
    if found is None:
        return None
    (w, v, u), sure = weights, sure = found
    product = p, q, r = a * w + d * v + e * u, d * w + b * v + f * u, e * w + f * v + c * u
    if not (sure or _certificate.optimal(product, weights, (sqrt(a), sqrt(b), sqrt(c)), tol)):
        return None
    return weights, max((p * w + q * v + r * u - min(product)) / scale, 0.0), 0, 0


def solve_array(G: Array, tol: float, slack: float) -> Answer:
    """The same by the active set, for a symmetric array."""
    if np.count_nonzero(np.isfinite(G)) < G.size:
        return np.full(len(G), nan), nan, 0, int(Status.NON_FINITE)
    G = in_range(G)
    w, iterations, _ = _active_set.solve(G, tol)
    roots = _certificate.norms(G.diagonal()).tolist()
    passed = _passes(G, w, roots, tol)
    if not passed:  # what its steps could not tell apart, other ones may
        again, more, _ = _problem.solve_plain(G, tol)
        iterations += more
        passed = _passes(G, again, roots, tol)
        w = again if passed or not np.isfinite(w).all() else w
    product = G @ w
    gap = (float(product @ w) - min(product.tolist())) / (max(G.diagonal().tolist()) or 1.0)
    passed = passed and _certificate.convex_array(G, slack)
    return w, max(gap, 0.0), iterations, 0 if passed else int(Status.NOT_CONVERGED)


def _passes(G: Array, w: Array, roots: list[float], tol: float) -> bool:
    return bool(np.isfinite(w).all()) and _certificate.optimal((G @ w).tolist(), w.tolist(), roots, tol)


def in_range(G: Array) -> Array:
    """`(M, M)` or `(M, M, B)` times a power of two, so that products neither overflow nor vanish: exact."""
    index = np.arange(len(G))
    most = G[index, index].max(0)
    scaled: Array = np.ldexp(G, -np.frexp(np.where(np.isfinite(most), most, 1.0))[1])
    return scaled


def solve_active(G: Matrix, active: Sequence[bool], tol: float, slack: float) -> Answer:
    """`solve_rows` on the active rows; the others get weight 0 and may hold anything."""
    if all(active):
        return solve_rows(G, tol, slack)
    index = [i for i, on in enumerate(active) if on]
    weights = [0.0] * len(G)
    if not index:
        return weights, 0.0, 0, int(Status.NO_ACTIVE_ROW)
    inner, gap, iterations, status = solve_rows([[G[i][j] for j in index] for i in index], tol, slack)
    for i, w in zip(index, inner, strict=True):
        weights[i] = w
    return weights, gap, iterations, status


def solve_loop(G: Array, active: Mask, tol: float, slack: float) -> Answers:
    """`(B, M, M)` problems one after another, by the active set."""
    weights, gaps = np.zeros(active.shape), np.zeros(len(G))
    iterations, status = np.zeros((2, len(G)), np.int64)
    for k, mask in enumerate(active):
        on = np.flatnonzero(mask)
        if len(on):
            weights[k, on], gaps[k], iterations[k], status[k] = solve_array(G[k][on][:, on], tol, slack)
        else:
            status[k] = Status.NO_ACTIVE_ROW
    return weights, gaps, iterations, status


def solve_batch(G: Array, active: Mask | None, tol: float, slack: float) -> Answers:
    """`(B, M, M)` problems all at once, the batch as the last axis; unsettled ones by `solve_loop`."""
    B, M = G.shape[:2]
    T = np.ascontiguousarray(G.transpose(1, 2, 0))
    mask = np.ones((M, B), np.bool_) if active is None else np.ascontiguousarray(active.T)
    if active is not None:
        T = np.where(mask & mask[:, None], T, 0.0)
    with np.errstate(all="ignore"):  # non-finite and singular problems are told apart by their flags
        T = in_range(T)
        finite = np.isfinite(T.sum((0, 1)))
        weights, iterations, settled = _settle(T, mask, active is None, tol)
        product = _product(T, weights)
        gaps = _gap(T, product, mask, weights)
        settled &= _certificate.optimal_batch(T, product, weights, mask, tol, np.where)
        settled &= _certificate.convex_batch(T, slack, np.where)
    status = np.zeros(B, np.int64)
    rest = np.flatnonzero(~(settled & finite))
    weights = np.ascontiguousarray(weights.T)
    if len(rest):
        on = mask.T[rest]
        weights[rest], gaps[rest], more, status[rest] = solve_loop(G[rest], on, tol, slack)
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


def _product(T: Array, w: Array) -> Array:
    product: Array = T[:, 0] * w[0]
    for k in range(1, len(w)):
        product += T[:, k] * w[k]
    return product


def _gap(T: Array, product: Array, mask: Mask, w: Array) -> Array:
    M = len(w)
    value = product[0] * w[0]
    for k in range(1, M):
        value += product[k] * w[k]
    scale = T[np.arange(M), np.arange(M)].max(0)
    gap = (value - np.where(mask, product, np.inf).min(0)) / np.where(scale > 0.0, scale, 1.0)
    clamped: Array = np.maximum(gap, 0.0)
    return clamped
